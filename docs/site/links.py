"""Pages and pictures of the site that lie elsewhere in the repository, and links to source files."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PAGES = {"results.md": "training/results/README.md", "changelog.md": "CHANGELOG.md"}
PLACES = {source: page for page, source in PAGES.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)?(#[^)\s]*)?\)")


def on_files(files, config):
    """Add the pages, and all pictures beside the results."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for picture in (ROOT / "training" / "results").glob("*.jpg"):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links to pages and pictures of the site, and show other files of the repository by their names."""
    own = PAGES.get(page.file.src_uri)
    folder = posixpath.dirname(own) if own else "docs"

    def replaced(found: re.Match) -> str:
        mark, text, target, anchor = found[1], found[2], found[3] or "", found[4] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in PLACES:
            return f"[{text}]({PLACES[path]}{anchor})"
        if path.startswith("docs/") and path.endswith(".md"):
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        if mark:
            return f"![{text}](pictures/{posixpath.basename(path)})"
        return f"{text} (`{path}`)"

    return LINK.sub(replaced, markdown)
