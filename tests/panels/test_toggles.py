"""Buttons and value follow each other, one change at a time."""

from __future__ import annotations

from lens.panels.toggles import Toggles


def test_buttons_and_value_follow_each_other():
    toggles, heard = Toggles({"A": 1, "B": 2, "C": 3}, (1, 3), {"B": "the second"}), []
    toggles.observe(lambda change: heard.append(change["new"]), "value")
    first, second, third = toggles.children
    assert (toggles.value, [button.value for button in toggles.children]) == ((1, 3), [True, False, True])
    assert (second.description, second.tooltip) == ("B", "the second")
    second.value = True
    first.value = False
    assert heard == [(1, 2, 3), (2, 3)]
    toggles.value = (1,)
    assert [button.value for button in (first, second, third)] == [True, False, False]
    toggles.value = ()
    assert heard[2:] == [(1,), ()]
