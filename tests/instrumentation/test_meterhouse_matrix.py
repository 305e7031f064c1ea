"""The matrix of what is metered: without holes, and the one that the documentation shows."""

from pathlib import Path

from matrix import CELLS, NOT_SUPPORTED, documented, marked

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "instrumentation.md"


def test_every_cell_is_proven_by_a_test_or_stated_as_not_supported():
    claimed = marked(HERE)
    assert claimed <= CELLS
    assert sorted(CELLS - claimed - set(NOT_SUPPORTED)) == []
    assert sorted(claimed & set(NOT_SUPPORTED)) == []


def test_the_documentation_shows_the_matrix():
    shown = DOCUMENT.read_text().partition("<!-- matrix -->\n")[2].partition("\n<!-- /matrix -->")[0]
    assert shown == documented(marked(HERE))
