"""Which notations are equal and which are not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.text_normalization import END, is_prose, sentences, words

ALIKE = [
    (r"x \leqslant 5", r"x\le 5", "x≤5", "x <= 5", r"x \leq 5"),
    (r"x\ne 3", r"x \neq 3", "x≠3", r"x \not= 3"),
    (r"\angle ABC = 30^\circ", r"\angle A B C=30^{\circ}", "∠ABC = 30°", "angle ABC = 30 degrees"),
    (r"\dfrac{1}{2}", r"\frac12", "1/2", "½", r"\frac 1 2", r"\tfrac{1}2"),
    (r"\frac{a+b}{c}", "(a+b)/c", "(a+b)÷c"),
    (r"2\pi r", "2πr", r"2 \pi r"),
    (r"\sqrt{2}", "√2", r"\sqrt 2", "sqrt(2)", "√{2}"),
    (r"3 \times 5", "3×5", "3*5", r"3\cdot 5", "3 · 5"),
    ("x²", "x^2", "x^{2}", "x**2"),
    ("x⁻¹", "x^{-1}", "x^(-1)", "x^-1"),
    ("−5 + 3", "-5 + 3", "–5+3"),
    ("（ｘ＝５）", "(x=5)"),
    (r"\infty", "∞"),
    ("1,000", "1000", r"1{,}000", r"1\,000", r"1,\!000", "1 000", "1'000"),
    ("right-angled triangle", "right angled triangle", "right - angled triangle"),
    ("a two-digit number", "a 2-digit number", "a two - digit number"),
    (r"\binom{8}{4}", r"\dbinom{8}{4}", "8 choose 4", r"{8 \choose 4}"),
    ("f'(x)", r"f^{\prime}(x)", "f′(x)", r"f^\prime (x)"),
    (r"B = \{1,2\}", r"B=\left\{1,2\right\}", "B = {1,2}", r"B = \lbrace 1, 2 \rbrace"),
    (r"A \cup B", "A ∪ B"),
    (r"x \in \mathbb{R}", "x ∈ ℝ"),
    ("50\\%", "50%", "50 percent"),
    (r"\text{cm}^2", r"\mathrm{cm}^{2}", "cm²"),
    (r"$\$5.50$", "$5.50"),
    (r"\left(\frac{1}{2}\right)^3", r"(\frac12)^3", "(1/2)^3"),
    (r"\frac{2}{\sqrt{3}}", r"2/\sqrt{3}"),
    ("Let's go", "Let’s go"),
    (r"\overline{AB}", r"\overline{A B}"),
    (r"a_{n+1} = a_n + 1", "a_{n + 1}=a_n+1"),
    (r"\alpha+\beta", "α+β"),
    (r"|x-3|", r"\left|x-3\right|", r"\lvert x - 3 \rvert"),
    (r"\log_2 8", r"\log_{2}8", "log_2(8)", "log₂8"),
    ("[0,1)", r"\left[0,1\right)"),
    (r"P_{}^{} = m^{}_{}", "P = m"),
    ("**Find** *x*.", "Find x."),
    (r"3\frac{1}{2}", "3½"),
    (r"10\,\text{km/h}", "10 km/h"),
    (".5", "0.5"),
    ("3:5", "3∶5"),
]
UNLIKE = [
    ("5 + 3", "5 - 3"),
    ("x^2+3x-4=0", "x^2-3x+4=0"),
    ("3<4", "3>4"),
    ("(-2)^3", "2^3"),
    ("(-2)^3", "-2^3"),
    ("3×5", "3÷5"),
    ("a_{n+1}", "a_n+1"),
    ("2(x+1)", "2x+1"),
    ("x≤5", "x<5"),
    ("[0,1)", "(0,1)"),
    (r"\{1,2\}", "(1,2)"),
    ("5!", "5"),
    ("f'(x)", "f(x)"),
    ("3.5", "3,5"),
    ("35", "3 5"),
    (r"\frac{1}{x}+1", r"\frac{1}{x+1}"),
    (r"\sqrt{x+1}", r"\sqrt{x}+1"),
    ("5%", "5"),
    ("30°", "30"),
    (r"\sin x", r"\cos x"),
    ("A ∪ B", "A ∩ B"),
    ("x ± 1", "x + 1"),
    ("2^10", "210"),
    ("1.5", "15"),
    ("|x|", "x"),
    ("3:5", "35"),
    ("x=1", "x≠1"),
    (r"\vec a \cdot \vec b", r"\vec a \times \vec b"),
    ("it is -5", "it is 5"),
    ("⌊x⌋", "⌈x⌉"),
    ("x^2", "x_2"),
    ("log_2 8", "log_3 8"),
    ("∈", "∉"),
    ("最大", "最小"),
]
pieces = st.sampled_from(
    [r"\frac", "{", "}", "(", ")", "^", "_", "1", "x", " ", "\n", ".", "'", "-", "*", "$", "²", "½", "α", "\\"]
)


@pytest.mark.parametrize("spelled", ALIKE, ids=lambda group: group[0])
def test_equivalent_notations_have_the_same_words(spelled: tuple[str, ...]):
    assert {text: words(text) for text in spelled} == dict.fromkeys(spelled, words(spelled[0]))


@pytest.mark.parametrize(("one", "other"), UNLIKE)
def test_different_texts_have_different_words(one: str, other: str):
    assert words(one) != words(other)


def test_words_by_hand():
    assert words(r"Find $\frac{a+1}{2} \le -3!$") == ("find", "(", "a", "+", "1", ")", "/", "2", "≤", "-", "3", "!")
    assert words("计算 3×5") == ("计", "算", "3", "×", "5")
    assert sentences("Compute $2^3$. Let's think: now\nor never") == [
        ("compute", "2", "^", "3"),
        ("lets", "think"),
        ("now",),
        ("or", "never"),
    ]


def test_prose_and_formulas_are_distinguished():
    assert all(map(is_prose, ["triangle", "of", "不"]))
    assert not any(map(is_prose, ["sin", "x", "xy", "12", "+", "pi", "a"]))


@settings(deadline=None)
@given(st.one_of(st.text(st.characters(codec=None, exclude_categories=())), st.lists(pieces).map("".join)))
def test_sentences_contain_all_words(text: str):
    assert words(text) == tuple(word for sentence in sentences(text) for word in sentence)
    assert END not in words(text)


def test_adversarial_texts_take_linear_time():
    for piece in [
        "{",
        "(",
        "}",
        r"\frac",
        "{(",
        "a ",
        "- ",
        "^{",
        "1,",
        " ",
        "\n",
        "**",
        "[asy]",
        "x'",
        "1 000 ",
        "(-",
        "{,",
    ]:
        assert len(words(piece * (20_000 // len(piece)))) <= 20_000
