"""Loading saved models and image processors, with errors in one sentence."""

from .image_processing_mpformer import MPFormerImageProcessor
from .modeling_mpformer import MPFormerForUniversalSegmentation


def load_pretrained(cls: type, name: str, **kwargs):
    """`cls.from_pretrained(name, **kwargs)`.

    Raises:
        ValueError: it cannot be loaded; the message names it and the reason.
    """
    try:
        return cls.from_pretrained(name, **kwargs)
    except OSError as error:
        raise ValueError(f"Cannot load {name}: {str(error).splitlines()[0]}") from error


def load_model(name: str) -> MPFormerForUniversalSegmentation:
    """Load an MP-Former or Mask2Former from a folder or the Hub, in evaluation mode.

    Raises:
        ValueError: it cannot be loaded.
    """
    return load_pretrained(MPFormerForUniversalSegmentation, name).eval()


def load_processor(name: str) -> MPFormerImageProcessor:
    """Load the image processor of an MP-Former or Mask2Former from a folder or the Hub.

    Raises:
        ValueError: it cannot be loaded.
    """
    return load_pretrained(MPFormerImageProcessor, name)
