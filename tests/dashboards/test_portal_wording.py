"""Text from outside on the portal's page."""

from meterhouse_portal.wording import escape


def test_control_characters_of_an_id_never_reach_the_page_and_markup_is_text():
    assert escape("a\x00b\x1b[31m\x85c") == "a\ufffdb\ufffd[31m\ufffdc"
    assert escape("<b>&\"'\tx\n") == "&lt;b&gt;&amp;&quot;&#x27;\tx\n"
