"""What blueprints say of where instances go: conditions on labels, amounts, and the rules as a whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.errors import InvalidBlueprint
from cdm.model.condition import LabelCondition, LabelOperator, problem_with_label
from cdm.model.quantity import MOST_MEMORY, memory_of, memory_shown, memory_text, millicores
from cdm.model.rules import Spread

pytestmark = pytest.mark.quick

NODE = {"node": "node-1", "gpu": "", "zone": "a", "class": "fast", "kernel": "6.1.0-25-amd64", "odd,one": "it's, (so)"}
LABELS = st.text(min_size=1, max_size=12).filter(
    lambda label: "=" not in label and not problem_with_label(label)
) | st.sampled_from(["not", "in", "and", "or", "'", "''", "not(a)", *NODE])
VALUES = st.text(max_size=12) | st.sampled_from(["not", "in", "a", "", "'", "a, b", "6.1"])
DOTTED = st.lists(st.integers(0, 99), min_size=1, max_size=4)


@pytest.mark.parametrize(
    "text",
    [
        "gpu", " gpu ", "!spot", "! spot", "zone = a", "zone=a", "class != spot", "spot != yes", "zone in (a, b)",
        "zone in(b,a)", "zone not in (c)", "zone  not  in ( c , d )", "spot not in (yes)", "kernel >= 6.1",
        "kernel > 6.0.99", "kernel <= 6.1.0.0", "kernel < 6.10", "gpu = ''", "'odd,one' = 'it''s, (so)'",
        "node = node-1", "!'not'", "kernel > 6", "kernel >= 006.1", "'odd,one'",
    ],
)  # fmt: skip
def test_conditions_that_hold(text: str) -> None:
    assert LabelCondition.parse(text).holds(NODE)


@pytest.mark.parametrize(
    "text",
    [
        "spot", "!gpu", "zone = b", "zone = A", "class != fast", "zone in (b, c)", "zone not in (a)", "kernel < 6.1",
        "kernel >= 6.10", "kernel > 6.1", "zone >= 6.1", "spot < 1", "spot = ''", "kernel = 6.1",
    ],
)  # fmt: skip
def test_conditions_that_do_not_hold(text: str) -> None:
    assert not LabelCondition.parse(text).holds(NODE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", '"" is empty; write "gpu", "!spot", '),
        ("zone == a", '"zone == a" has two signs in a row; write a single ='),
        ("not gpu", '"not gpu" begins with "not"; write "!" before a label, or "zone not in (a)"'),
        ("not in (a)", '"not in (a)" begins with "not"; write "!" before a label, or "zone not in (a)"'),
        ("zone = a, b", '"zone = a, b" compares with several values; write "zone in (a, b)"'),
        ("zone in ()", '"zone in ()" has nothing in its brackets; at least one value is needed'),
        ("gpu and ssd", '"gpu and ssd" says more than one thing; write each as a condition of its own, '),
        ("zone = a || gpu", '"zone = a || gpu" says more than one thing; '),
        ("kernel >= new", "\"kernel >= new\" compares with 'new', which is not a dotted number such as 6.1"),
        ("zone = a b", '"zone = a b" is not a condition; write "gpu", '),
        ("zone in a", '"zone in a" is not a condition; '),
        ("zone =", '"zone =" is not a condition; '),
        ("zone = 'a", '"zone = \'a" is not a condition; '),
        ("zone => 3", '"zone => 3" is not a condition; '),
        ("'zo ne' = a", "asks for a label whose name 'zo ne' has a space in it"),
        ("!'a\tb'", "asks for a label whose name 'a\\tb' has a space in it"),
        ("'' in (a)", "asks for a label without a name"),
        ("x" * 201, f"asks for a label whose name '{'x' * 40}'… is longer than 200 characters"),
        ("x" * 1001, "is 1,001 characters long; at most 1,000 are read"),
    ],
)
def test_what_is_no_condition_is_told(text: str, told: str) -> None:
    with pytest.raises(InvalidBlueprint) as caught:
        LabelCondition.parse(text)
    assert caught.value.problem.startswith(told)
    assert caught.value.field == ""
    assert len(caught.value.problem) <= 240


@given(LABELS, st.sampled_from(["=", "!="]), VALUES)
def test_a_comparison_reads_as_it_is_written(label: str, sign: str, value: str) -> None:
    quoted = ["'{}'".format(word.replace("'", "''")) for word in (label, value)]
    condition = LabelCondition.parse(f"{quoted[0]}{sign}{quoted[1]}")
    assert (condition.label, condition.values) == (label, (value,))
    assert LabelCondition.parse(condition.text) == condition
    assert condition.holds({label: value}) is (sign == "=")
    assert condition.holds({label: value + "x"}) is (sign == "!=")
    assert condition.holds({}) is (sign == "!=")


@given(LABELS, st.booleans())
def test_a_label_alone_reads_as_it_is_written(label: str, absent: bool) -> None:
    condition = LabelCondition.parse("{}'{}'".format("!" * absent, label.replace("'", "''")))
    assert condition.label == label
    assert LabelCondition.parse(condition.text) == condition
    assert condition.holds({label: "x"}) is not absent
    assert condition.holds({}) is absent


@given(LABELS, st.booleans(), st.lists(VALUES, min_size=1, max_size=4))
def test_a_list_of_values_reads_as_it_is_written(label: str, negated: bool, values: list[str]) -> None:
    words = ["'{}'".format(word.replace("'", "''")) for word in (label, *values)]
    condition = LabelCondition.parse(f"{words[0]} {'not ' * negated}in ({','.join(words[1:])})")
    assert condition.operator is (LabelOperator.NOT_IN if negated else LabelOperator.IN)
    assert condition.values == tuple(dict.fromkeys(values))
    assert LabelCondition.parse(condition.text) == condition
    assert all(condition.holds({label: value}) is not negated for value in values)


@given(DOTTED, st.sampled_from(["<", "<=", ">", ">="]), DOTTED, st.sampled_from(["", "-x", "+1", "~2", "_3"]))
def test_dotted_numbers_are_compared_number_by_number(
    here: list[int], sign: str, there: list[int], suffix: str
) -> None:
    condition = LabelCondition.parse(f"kernel {sign} {'.'.join(map(str, there))}")
    assert LabelCondition.parse(condition.text) == condition
    first, second = ([*numbers, 0, 0, 0, 0][:4] for numbers in (here, there))
    expected = {"<": first < second, "<=": first <= second, ">": first > second, ">=": first >= second}
    assert condition.holds({"kernel": ".".join(map(str, here)) + suffix}) is expected[sign]


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_an_error(text: str) -> None:
    try:
        condition = LabelCondition.parse(text)
    except InvalidBlueprint:
        return
    assert LabelCondition.parse(condition.text) == condition


@pytest.mark.parametrize(
    ("typed", "amount"),
    [
        (0, 0), (5, 5), ("5", 5), ("256M", 256_000_000), ("1Gi", 2**30), ("1.5Gi", 3 * 2**29), ("0.0001K", 1),
        ("2Ti", 2**41), ("64Ki", 65_536), ("1.2345G", 1_234_500_000),
    ],
)  # fmt: skip
def test_amounts_of_memory(typed: int | str, amount: int) -> None:
    assert memory_of(typed) == amount


@pytest.mark.parametrize("typed", ["", "M", "1MB", "1 M", "-1", "1m", "1e3", "1,5G", "9999999Ti", -1, 2**60 + 1])
def test_what_is_no_amount_of_memory_is_told(typed: int | str) -> None:
    with pytest.raises(InvalidBlueprint, match='must be an amount of memory: bytes, or a text like "256M"'):
        memory_of(typed)


@given(st.integers(0, MOST_MEMORY) | st.integers(0, 4096).map(lambda blocks: blocks * 2**20))
def test_an_amount_of_memory_reads_as_it_is_written(amount: int) -> None:
    assert memory_of(memory_text(amount)) == amount
    assert len(memory_shown(amount)) <= 12


def test_memory_is_shown_for_people() -> None:
    shown = [memory_shown(each) for each in (0, 999, 256_000_000, 2**30, 16_725_696_512, 1023 * 2**20 + 1, 2**60)]
    assert shown == ["0", "999", "256M", "1Gi", "15.6Gi", "1,023Mi", "1,048,576Ti"]


def test_sums_of_cores_are_exact() -> None:
    assert sum(millicores(0.1) for _ in range(3)) == millicores(0.3)


def test_the_weights_of_a_spread() -> None:
    even, named, most = Spread("zone"), Spread("zone", {"a": 2.0}), Spread("zone", {"a": 2.0, "*": 0.5})
    assert [even.weight(zone) for zone in ("a", "b", None)] == [1, 1, 1]
    assert [named.weight(zone) for zone in ("a", "b", None)] == [2, 0, 0]
    assert [most.weight(zone) for zone in ("a", "b", None)] == [2, 0.5, 0.5]
