"""tasks/answers.py: what is decided from texts alone. test_rewards.py tests the verdicts, math-verify's included."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.answers import compare, normalise, quantity, word

PIECES = [
    *"7 8 x , . : $ ~ \\ { } ( ) [ ] = - – + * ^ _ / % ! ½ ² √ ° ７ 万 元 é π £ 八 A".split(),
    *r"\\ \! \, \; \( \] \$ \% \frac \sqrt \text{ \text{m} \bf \color{red} \circ \overline{3} \pmod \approx".split(),
    *" \n\0\u200b\ud800",
    "dollars",
    " cm",
    "1,234",
    "2e3",
    " million",
    " or ",
    "(C)",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=40)


@given(TEXTS)
@settings(deadline=None)  # a busy machine is not a failure
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(TEXTS)
@settings(deadline=None)
def test_every_text_is_itself_and_keeps_its_value_without_its_unit(text):
    text = normalise(text)
    value, unit = quantity(text)
    assert compare(text, text)[0] is True
    assert text == "" or value != ""
    if not unit:
        assert value == text


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
@settings(deadline=None)
def test_integers_are_equal_iff_they_are_in_any_form(n, m):
    for form in integer_forms(n):
        assert compare(str(n), normalise(form))[0] is True, form
        assert compare(str(m), normalise(form))[0] is (n == m), form


def integer_forms(n):
    sign, digits, grouped = "-" if n < 0 else "", f"{abs(n)}", f"{n:,}"
    wide = digits.translate({ord("0") + i: ord("０") + i for i in range(10)})
    formats = (
        r" {} |{}.|{}.00|{},|${}$|\({}\)|{}\,|~{}|**{}**|\bf {}|{{\bf {}}}|\color{{red}}{{{}}}|\underline{{{}}}|={}"
    )
    formats += r"|\approx {}|\text{{{}}}|{} apples|{}\text{{ m}}^2|\${}|{}^\circ|{} km/h|\textbf{{(B)}} {}|{}\\"
    return [
        *(form.format(n) for form in formats.split("|")),
        *(grouped.replace(",", separator) for separator in (",", "{,}", r"\,", r"\!", " ")),
        *(f"{minus}{digits}" for minus in ("−", "–", "- ") if n < 0),
        f"{sign}00{digits}",
        f"{sign}{wide}",
        "\u200b".join(str(n)) + "\ufeff",
        f"{n}e0",
        f"{n}000e-3",
    ]


@pytest.mark.parametrize(
    "text, value, unit",
    [
        (r"5 \text{ cm}", "5", ("cm",)),
        (r"5 \text{ square centimeters}", "5", ("cm", "sq")),
        (r"5\text{ cm}^{2}", "5", ("cm", "sq")),
        ("5 cm^2", "5", ("cm", "sq")),
        ("60 km/h", "60", ("h", "km")),
        (r"60 \text{ kilometers per hour}", "60", ("h", "km")),
        (r"\frac{1}{2}\text{ hours}", r"\frac{1}{2}", ("h",)),
        (r"12\pi \text{ units}", r"12\pi", ("unit",)),
        (r"\$4.50", "4.5", ("dollar",)),
        (r"9\%", "9", ("%",)),
        ("30°", "30", ("deg",)),
        ("1f_{16}".upper(), "1F", ("_16",)),
        ("3 apples per day", "3", ("apple", "day")),
        ("9.8 m/s^2", "9.8", ("m", "s", "sq")),
        (r"12\pi\text{ cm²}", r"12\pi", ("cm", "sq")),
        (r"9.8\,\Omega", "9.8", ("ohm",)),
        ("5平方千米", "5", ("km", "sq")),
        ("(1011)_2", "1011", ("_2",)),
        ("3 blind mice", "3 blind mice", ()),  # units are an allow-list
        ("36π", r"36\pi", ()),
        (r"7 \text{ pairs}", r"7 \text{ pairs}", ()),
        (r"7 \text{ square}", r"7 \text{ square}", ()),
        (r"16\text{M}", r"16\text{M}", ()),
        ("2m", "2m", ()),  # products
        ("2 m", "2 m", ()),
        ("2xy", "2xy", ()),
        ("2 sinx", "2 sinx", ()),
        (r"2\text{ thousandths}", r"2\text{ thousandths}", ()),  # values
        (r"5\text{ or more}", r"5\text{ or more}", ()),
        (r"5\text{ 6}", "5 6", ()),
        ("east", "east", ()),
        (r"\text{5 cm}", "5", ("cm",)),
    ],
)
def test_units(text, value, unit):
    assert quantity(normalise(text)) == (value, unit)


@pytest.mark.parametrize("text", [r"\text{East}", "east", " EAST. ", r"\textbf{east}", r"(\mathrm{east})"])
def test_words(text):
    assert word(normalise(text)) == "east"


@pytest.mark.parametrize("text", [r"\frac{e}{a}", "e^a", r"\text{5 east}", "", "5", "a, b"])
def test_no_words(text):
    assert word(normalise(text)) == ""


def test_no_text_takes_long():
    """Each of these makes some pattern try every way to split the text; a pattern that did it badly would not end."""
    parts = [
        "{",
        "(",
        "a ",
        r"\text{a} ",
        r"\text{ ",
        "abcd ",
        "**a",
        ",000",
        "^",
        "\\",
        "/h",
        r"\bf ",
        "1 ",
        "0.",
        "9",
    ]
    parts += [
        r"\dot{1}",
        ":",
        "x:",
        " for all x",
        r"\{x:",
        r"\{x \mid",
        "C_{1}^{2}",
        "一",
        "7万",
        "A, ",
        "x=",
        r"\langle ",
    ]
    for part in parts + [r"\overline{3}", r"\text{ cm}^2", "½", "√", " \\\\", r"\pmod{", "{a}", "(C)", "%"]:
        for start in ("", "5", "5 ", "1,000", "{", r"\text{"):
            text = normalise((start + part * 512)[:512])
            assert compare("204", text)[0] is not True
