"""Which annotations of a dataset are wrong? Ranks them by what a trained model says against them.

mpformer audit outputs/yours data/yours audit --eval_split train

Finds objects whose mask the pilot moves far from the annotated one (mask), that are predicted with another class
(class), that are predicted but not annotated (missing), and that are annotated twice (duplicate). The model may have
been trained on the same images. Writes audit/index.html, the most suspicious ones first; audit/audit.json, all findings
from `--min_suspicion` on; and audit/annotations/instances_default.json, the suggestions as COCO annotations, which CVAT
imports: kind and suspicion are their attributes. `--formats` writes them for other tools instead, with the suspicion as
score. Stuff is not audited. Needs `pip install "mpformer-hf[data]"`.
"""

from ..data.arguments import ModelDataArguments
from ..inference.arguments import LoadingArguments
from ..prompts.arguments import AuditArguments
from ..utils.arguments import parse


def main(argv: list[str]) -> None:
    """
    Raises:
        ValueError: an argument is invalid, or the command fails.
    """
    classes = [LoadingArguments, ModelDataArguments, AuditArguments]
    loading, data, args = parse(classes, argv, __doc__, "mpformer audit", ignore_unknown=True)
    from ..prompts.auditing import audit

    audit(loading, data, args)
