"""Which problems are selected, and which rows are invalid."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.problems import Hub, ProblemFile
from reasoning.problem_selection import ProblemSelection
from reasoning.records import Problem
from tasks.steps.problem_files import ProblemsRefused, Row
from tasks.steps.problem_intake import Intake, NamedRow
from tests.tasks.steps.test_problem_images import png


class FakeVerifier:
    """An answer is readable unless it begins with a question mark."""

    def readable(self, answers: Sequence[Any]) -> list[bool]:
        return [not getattr(answer, "answer", answer).startswith("?") for answer in answers]


def named(rows: Sequence[dict[str, Any]], subset: str = "") -> list[NamedRow]:
    return [NamedRow(f"row-{n}", subset, Row(f"file:{n + 1}", n, row)) for n, row in enumerate(rows)]


def intake(**settings: Any) -> Intake:
    return Intake(ProblemFile(path="file", **settings), FakeVerifier())  # type: ignore[arg-type]


def selected(
    rows: Sequence[NamedRow], count: int, seed: int = 0, backwards: bool = False, buffer: int | None = None
) -> Intake:
    taken = intake(max_invalid_fraction=1)
    taken.select(iter(rows), ProblemSelection(seed, backwards), count, buffer)
    return taken


def texts(taken: Intake) -> list[str]:
    return [problem.text for problem in taken.problems]


WORDS = st.sampled_from(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {"problem": st.builds("{} and {}".format, WORDS, WORDS), "answer": st.sampled_from(["1", "2", "?"])},
        optional={"level": st.integers(1, 3), "subject": st.sampled_from("xy")},
    ),
    max_size=60,
)


@given(ROWS, st.integers(0, 9), st.integers(1, 40), st.sampled_from([None, 7, 20]), st.booleans())
def test_a_larger_selection_contains_the_smaller_one(
    rows: list[dict[str, Any]], seed: int, count: int, buffer: int | None, backwards: bool
):
    small, large = (texts(selected(named(rows), n, seed, backwards, buffer)) for n in (count, count + 1))
    assert large[:count] == small
    assert len(set(large)) == len(large)


@given(ROWS, st.integers(0, 9), st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_makes_no_difference(rows: list[dict[str, Any]], seed: int, count: int, random: Any):
    once = list({row["problem"]: row for row in rows}.values())  # of two rows with one text the first counts
    shuffled = list(once)
    random.shuffle(shuffled)
    assert texts(selected(named(once), count, seed)) == texts(selected(named(shuffled), count, seed))


@given(ROWS, st.integers(0, 9), st.integers(1, 40))
def test_every_row_is_accounted_for(rows: list[dict[str, Any]], seed: int, count: int):
    taken = selected(named(rows), count, seed)
    assert taken.read == len(rows)
    accounted = len(taken.problems) + len(taken.malformed) + len(taken.unreadable) + taken.duplicates
    assert accounted <= taken.read
    assert accounted == taken.read or len(taken.problems) == count


PLAIN = [{"problem": f"What is {n}?", "answer": str(n), "subject": "ab"[n % 2]} for n in range(100)]


def test_each_seed_selects_its_own_problems_reproducibly():
    selections = [texts(selected(named(PLAIN), 10, seed)) for seed in (0, 1, 2, 0)]
    assert selections[0] == selections[3]
    assert len({*selections[0], *selections[1], *selections[2]}) > 20


def test_training_and_benchmark_of_one_source_overlap_as_little_as_possible():
    training, benchmark = selected(named(PLAIN), 60), selected(named(PLAIN), 40, backwards=True)
    assert not {*texts(training)} & {*texts(benchmark)}
    assert len({*texts(training), *texts(benchmark)}) == 100


def test_subsets_subjects_and_levels_are_in_proportion():
    sizes = {"algebra": 600, "counting": 200, "geometry": 100}
    rows: list[NamedRow] = []
    for subset, size in sizes.items():
        contents = [{"problem": f"{subset} {n}", "answer": "1", "level": f"Level {n % 5}"} for n in range(size)]
        rows += [row._replace(name=f"{subset}:{row.name}") for row in named(contents, subset)]
    taken = selected(rows, 90)
    assert Counter(text.split()[0] for text in texts(taken)) == {"algebra": 60, "counting": 20, "geometry": 10}
    assert Counter(problem.level for problem in taken.problems) == dict.fromkeys(range(5), 18)


def test_texts_that_differ_in_spelling_only_are_selected_once():
    rows = [{"problem": text, "answer": "1"} for text in ("Find $x$ in 2x.", "find x in 2x", "Find  x in 2x?", "Else?")]
    taken = selected(named(rows), 5)
    assert len(taken.problems) == 2
    assert taken.duplicates == 2


def test_problems_that_differ_in_a_sign_or_an_operator_are_different_ones():
    rows = [{"problem": f"Solve x {sign} 1 = 0.", "answer": "1"} for sign in "+-"]
    assert len(selected(named(rows), 5).problems) == 2


def test_the_next_buffer_is_read_only_when_the_first_has_too_few():
    taken = selected(named(PLAIN), 10, buffer=20)
    assert taken.read == 20
    assert {int(problem.answer) for problem in taken.problems} <= set(range(20))
    more = selected(named(PLAIN), 25, buffer=20)
    assert more.read == 40
    assert texts(more)[:10] == texts(taken)


def test_duplicates_of_an_earlier_buffer_are_not_selected():
    taken = selected(named(PLAIN[:20] * 5), 21, buffer=20)
    assert (len(taken.problems), taken.duplicates, taken.read) == (20, 80, 100)


def test_an_unreadable_problem_is_replaced_by_the_next():
    rows = [row | {"answer": "?"} if n % 10 == 0 else row for n, row in enumerate(PLAIN)]
    taken = selected(named(rows), 50)
    assert len(taken.problems) == 50
    assert taken.checked == 50 + len(taken.unreadable)
    assert "the right answer '?' reads neither" in taken.unreadable[0].detail


def test_a_few_unreadable_answers_in_a_small_selection_do_not_refuse_a_large_set():
    order = texts(selected(named(PLAIN), 100))
    rows = [row | {"answer": "?"} if row["problem"] in order[:3] else row for row in PLAIN]
    taken = intake()
    taken.select(iter(named(rows)), ProblemSelection(0, False), 5, None)
    assert (len(taken.problems), len(taken.unreadable)) == (5, 3)
    taken.validate("file")  # 3 of 8, but not more than 5 of 100
    few = intake()
    few.select(iter(named([row for row in rows if row["problem"] in order[:8]])), ProblemSelection(0, False), 5, None)
    with pytest.raises(ProblemsRefused, match=r"3 of 8 rows are invalid; problems\.max_invalid_fraction allows 5%"):
        few.validate("file")


def test_duplicate_ids_and_malformed_rows_are_invalid():
    taken = intake(max_invalid_fraction=1)
    taken.take_all(
        named([{"id": "a", "problem": "1?", "answer": 1}, {"id": "a", "problem": "2?", "answer": 2}, {"x": 1}])
    )
    assert [row.reason for row in taken.malformed] == ["duplicate-id", "missing-field"]
    assert "already seen at file:1" in taken.malformed[0].detail
    assert [problem.id for problem in taken.problems] == ["a"]


@pytest.mark.parametrize("rows", [[], [{"x": 1}], [{"problem": "?", "answer": "?"}]])
def test_a_source_without_problems_is_refused_whatever_its_fraction(rows: list[dict[str, Any]]):
    taken = intake(max_invalid_fraction=1)
    taken.take_all(named(rows))
    with pytest.raises(ProblemsRefused, match=r"no rows|1 of 1 rows are invalid"):
        taken.validate("file")


def test_overriding_one_column_keeps_the_known_others():
    changed = Hub.model_validate({"name": "openai/gsm8k", "columns": {"problem": "q2"}})
    taken = Intake(changed, FakeVerifier())  # type: ignore[arg-type]
    taken.take_all(named([{"q2": "1+1?", "answer": "#### 2"}]))
    assert [(problem.text, problem.answer) for problem in taken.problems] == [("1+1?", "2")]


def test_public_problems_are_selected_in_proportion(real_data: Path):
    rows = [json.loads(line) for line in (real_data / "math_train_sample2000.jsonl").read_text().splitlines()]
    totals = Counter(row.get("subject") for row in rows)
    taken = selected(named(rows), 500, seed=7)
    subjects = Counter(problem.subject for problem in taken.problems)
    assert len(subjects) >= 7
    for subject, count in subjects.items():
        assert abs(count - 500 * totals[subject] / 2000) <= 2  # one for rounding, and one for a duplicate
    small = selected(named(rows), 20, seed=7)
    assert texts(taken)[:20] == texts(small)
    assert all(isinstance(problem, Problem) for problem in small.problems)


@given(ROWS, st.integers(0, 9), st.integers(1, 5), st.booleans())
def test_a_draw_by_subject_takes_as_many_of_each_and_nests(
    rows: list[dict[str, Any]], seed: int, each: int, backwards: bool
):
    def drawn(each: int) -> Intake:
        taken = intake(max_invalid_fraction=1)
        taken.select_by_subject(iter(named(rows)), ProblemSelection(seed, backwards), each, None)
        return taken

    rows = [row | {"subject": row.get("subject", "z")} for row in rows]
    everything, found, more = drawn(len(rows) + 1), drawn(each), drawn(each + 1)
    available = Counter(problem.subject for problem in everything.problems)
    assert max(Counter(problem.subject for problem in found.problems).values(), default=0) <= each
    for subject, total in available.items():
        taken = [problem for problem in found.problems if problem.subject == subject]
        assert len(taken) == min(each, total)
        assert {problem.text for problem in taken} <= {p.text for p in more.problems}
    assert found.read == len(rows)


def test_a_draw_by_subject_needs_subjects():
    rows = named([{"problem": "1+1?", "answer": "2"}])
    with pytest.raises(ProblemsRefused, match=r"name their column in columns\.subject"):
        intake().select_by_subject(iter(rows), ProblemSelection(0, False), 3, None)


IMAGE = png((30, 20))
OTHER = png((40, 20))
DECODED = {"bytes": IMAGE, "path": "images/1.png"}
CONCLUDED = "<SUMMARY> a </SUMMARY><CAPTION> b </CAPTION><REASONING> c </REASONING><CONCLUSION> D </CONCLUSION>"


@pytest.mark.parametrize(
    ("name", "row", "text", "answer", "images"),
    [
        (
            "Xkev/LLaVA-CoT-100k",
            {
                "id": "x",
                "image": {"bytes": IMAGE, "path": None},
                "conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": CONCLUDED}],
            },
            "Which?",
            "D",
            [IMAGE],
        ),
        (
            "AI4Math/MathVista",
            {"pid": "1", "question": "Even?", "decoded_image": DECODED, "answer": "No", "choices": ["Yes", "No"]},
            "Even?\n(A) Yes\n(B) No",
            "B",
            [IMAGE],
        ),
        (
            "AI4Math/MathVista",
            {"pid": "2", "question": "How long?", "decoded_image": DECODED, "answer": "1.2", "choices": None},
            "How long?",
            "1.2",
            [IMAGE],
        ),
        (
            "MathLLMs/MathVision",
            {
                "id": "7",
                "question": "In <image1>?",
                "options": [],
                "decoded_image": DECODED,
                "answer": "12",
                "level": 3,
            },
            "In ?",
            "12",
            [IMAGE],
        ),
        (
            "MathLLMs/MathVision",
            {
                "id": "8",
                "question": "Pick.",
                "options": ["a", "b"],
                "decoded_image": DECODED,
                "answer": "A",
                "level": 1,
            },
            "Pick.\n(A) a\n(B) b",
            "A",
            [IMAGE],
        ),
        (
            "Lin-Chen/MMStar",
            {"index": 3, "question": "Which? Options: A: a, B: b", "image": IMAGE, "answer": "B", "category": "math"},
            "Which? Options: A: a, B: b",
            "B",
            [IMAGE],
        ),
        (
            "MMMU/MMMU",
            {
                "id": "validation_Art_1",
                "question": "<image 2> or <image 1>?",
                "options": "['one', 'two']",
                "answer": "A",
                "subfield": "Drawing",
                **{f"image_{n}": None for n in range(3, 8)},
                "image_1": DECODED,
                "image_2": {"bytes": OTHER, "path": "2.png"},
            },
            " or ?\n(A) one\n(B) two",
            "A",
            [OTHER, IMAGE],
        ),
    ],
)
def test_rows_of_known_data_sets_with_images(name: str, row: Any, text: str, answer: str, images: list[bytes]):
    taken = Intake(Hub(name=name), FakeVerifier())  # type: ignore[arg-type]
    taken.take_all(named([row]))
    (problem,) = taken.problems
    assert (problem.text, problem.answer, list(problem.images)) == (text, answer, images)
    assert sum(part.type == "image" for part in problem.prompt) == len(images)


def test_a_row_with_a_bad_image_is_set_aside_and_the_others_are_taken(tmp_path: Path):
    (tmp_path / "good.png").write_bytes(IMAGE)
    rows = [
        {"id": "a", "problem": "Same?", "answer": "1", "image": "good.png"},
        {"id": "b", "problem": "Same?", "answer": "1", "image": "../good.png"},
        {"id": "c", "problem": "Other?", "answer": "1", "image": "missing.png"},
        {"id": "d", "problem": "Same?", "answer": "2", "image": {"bytes": OTHER}},
        {"id": "e", "problem": "Same?", "answer": "1", "image": "good.png"},
    ]
    columns = {"images": "image"}
    taken = intake(max_invalid_fraction=1, columns=columns, images={"folder": str(tmp_path)})
    taken.select(iter(named(rows)), ProblemSelection(0, False), 10, None)
    assert {problem.id for problem in taken.problems} in ({"a", "d"}, {"e", "d"})  # one text, two pictures
    assert Counter(row.reason for row in taken.unreadable) == {"outside-folder": 1, "missing-image": 1}
    assert taken.duplicates == 1
    assert all(row.location for row in taken.unreadable)


def test_a_selection_reads_the_images_of_the_selected_alone(tmp_path: Path):
    rows = [{"problem": f"How many {n}?", "answer": "1", "image": f"{n}.png"} for n in range(50)]
    (tmp_path / "all").mkdir()
    for n in range(50):
        (tmp_path / "all" / f"{n}.png").write_bytes(png((20 + n, 20)))
    taken = intake(columns={"images": "image", "id": ""}, images={"folder": str(tmp_path / "all")})
    read: list[Any] = []
    original = taken._images.read
    taken._images.read = lambda values: read.append(values) or original(values)  # type: ignore[method-assign]
    taken.select(iter(named(rows)), ProblemSelection(0, False), 5, None)
    assert len(taken.problems) == len(read) == 5
