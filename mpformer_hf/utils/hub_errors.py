"""Why something could not be loaded, in one line."""

from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

ANSWERED = "the Hub answered"  # beginning of a reason


def reason_of(error: BaseException) -> str:
    """The line of an error, or of the answer of the Hub that caused it, which says why."""
    cause = error.__cause__ if isinstance(error, StrictDataclassError) else error
    chain, link = [], cause
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    answer = next((link for link in chain if isinstance(link, HfHubHTTPError) and link.response is not None), None)
    if answer is not None:
        return f"{ANSWERED} {answer.response.status_code}: {next(iter(str(answer).strip().splitlines()), '')}"
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)
