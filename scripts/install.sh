# Sourced by the other scripts: create .venv if it does not exist, install this project with an extra, activate it.
#   source scripts/install.sh EXTRA
if [ ! -d .venv ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
source .venv/bin/activate
python -m pip install --quiet --upgrade pip
python -m pip install --quiet -e ".[$1]" || python -m pip install -e ".[$1]" # --quiet does not say what conflicts
