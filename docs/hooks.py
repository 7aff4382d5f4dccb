"""What mkdocs does beside its plugins: two pages that come from elsewhere, and a check of the page on the house.

The page of the configuration is config/README.md, so that there is one copy. The page on the house lists every file of
the library; the log warns of one that is missing there, or that is gone, and `mkdocs build --strict` then fails. The
example of a report is the page of a study that is finished here: the default study, or else the smoke study.
"""

import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks")

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "config" / "README.md"  # written by `python -m proxycast.config.reference`
EXAMPLES = [ROOT / "results" / study / "report.html" for study in ("miniature", "smoke")]
# A block of code in a numbered list: three spaces are enough for GitHub, mkdocs wants four.
CODE_IN_LIST = re.compile(r"^   ```.*?^   ```$", re.MULTILINE | re.DOTALL)
WING = re.compile(r"^### (?:`(?P<wing>\w+/)`|At the root)\n(?P<files>.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
LISTED = re.compile(r"^\| `([\w/]+\.py)` \|", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    text = CODE_IN_LIST.sub(lambda block: block[0].replace("\n", "\n ").join((" ", "")), REFERENCE.read_text())
    files.append(File.generated(config, "reference/configuration.md", content=text))
    example = next((page for page in EXAMPLES if page.is_file()), None)
    if example:
        files.append(File.generated(config, "example/report.html", content=example.read_text(encoding="utf8")))
    else:
        log.warning("no report to show; make one: snakemake --configfile config/smoke.yaml --cores 2")
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    if page.file.src_uri != "how/house.md":
        return
    library = ROOT / "workflow" / "proxycast"
    there = {path.relative_to(library).as_posix() for path in library.rglob("*.py") if path.name != "__init__.py"}
    listed = {(wing["wing"] or "") + name for wing in WING.finditer(markdown) for name in LISTED.findall(wing["files"])}
    for name in sorted(there - listed):
        log.warning("how/house.md lacks workflow/proxycast/%s", name)
    for name in sorted(listed - there):
        log.warning("how/house.md lists workflow/proxycast/%s, which is not there", name)


def on_serve(server, config: MkDocsConfig, builder):
    server.watch(str(REFERENCE))
    return server
