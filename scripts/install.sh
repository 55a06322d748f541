# Sourced by the other scripts: make .venv if it is missing, install this project into it with an extra, activate it.
#   source scripts/install.sh EXTRA
if [ ! -d .venv ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
source .venv/bin/activate
python -m pip install --quiet --upgrade pip
python -m pip install --quiet -e ".[$1]"
