"""Make the pictures of README.md and of this site again, from finished studies: python docs/pictures.py [PICTURE...]

A picture is a figure of a study, or the top of a study's page in a browser (needs Debian's chromium and the package
playwright). A study that is not finished is named, with the command that runs it, and its pictures stay as they are.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
# Picture -> the study's file, and the figure below its results.
OF_FIGURES = {
    "model_selection_methods.png": ("config/miniature_model_selection.yaml", "model_selection/methods.png"),
    "post_training_methods.png": (
        "config/miniature_post_training.yaml",
        "model_selection/post_training_methods.png",
    ),
    "post_training_shifts.png": (
        "config/miniature_post_training.yaml",
        "model_selection/post_training_shifts.png",
    ),
    "orders_over_learning_rate.png": ("config/miniature_rates.yaml", "data_selection/orders_over_learning_rate.png"),
    "pareto_frontier.png": ("config/config.yaml", "data_selection/pareto_frontier.png"),
    "published_datadecide.png": ("config/published_datadecide.yaml", "data_selection/pareto_frontier.png"),
    "published_ladder_two_step.png": ("config/published_ladder.yaml", "forecasting/two_step_law.png"),
    "published_olmo2_error.png": ("config/published_olmo2.yaml", "forecasting/error_over_horizon.png"),
    "published_repeats_over_compute.png": (
        "config/published_datadecide.yaml",
        "data_selection/repeats_over_compute.png",
    ),
    "snr_against_decision_accuracy.png": (
        "config/config.yaml",
        "data_selection/snr_against_decision_accuracy.png",
    ),
}
# Picture -> the study's file, width and height in pixels of the browser's window, light or dark.
OF_PAGES = {
    "report.png": ("config/config.yaml", 1100, 1000, "light"),
}
STUDY_OF = {"config/config.yaml": "miniature"}  # others are named as their file


def results_of(study: str) -> Path:
    return ROOT / "results" / STUDY_OF.get(study, Path(study).stem)


def photograph(page: Path, width: int, height: int, scheme: str, picture: Path) -> None:
    """The top of a page, once every chart is drawn, with two pixels of the picture for each of the window's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        window = browser.new_page(
            viewport={"width": width, "height": height}, device_scale_factor=2, color_scheme=scheme, offline=True
        )
        window.goto(page.as_uri())
        window.wait_for_selector("html[data-drawn=all]")
        window.screenshot(path=picture)
        browser.close()


def main(wanted: list[str]) -> int:
    unknown = set(wanted) - {*OF_FIGURES, *OF_PAGES}
    if unknown:
        print(f"no picture {', '.join(sorted(unknown))}; there are {', '.join([*OF_FIGURES, *OF_PAGES])}")
        return 2
    unfinished = set()
    for picture in wanted or [*OF_FIGURES, *OF_PAGES]:
        study, figure = (OF_FIGURES | OF_PAGES)[picture][:2]
        source = results_of(study) / (figure if picture in OF_FIGURES else "report.html")
        if not source.is_file():
            unfinished.add(study)
        elif picture in OF_FIGURES:
            shutil.copyfile(source, FIGURES / picture)
        else:
            photograph(source, *OF_PAGES[picture][1:], FIGURES / picture)
    for study in sorted(unfinished):
        print(f"not finished: snakemake --configfile {study} --cores 2")
    return bool(unfinished)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
