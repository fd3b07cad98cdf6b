"""Where data sets on the Hugging Face hub keep what a problem needs.

Knows: names of data sets and of their columns. Must not know: rows, files, the hub.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from conf.base import Settings


class Columns(Settings):
    """Where a data set keeps what a problem needs. A dotted name leads into objects and lists:
    `reward_model.ground_truth`, `conversations.0.value`."""

    id: str = "id"
    """Empty: rows are named by their position."""
    problem: str = "problem"
    """Text, or a list of messages, of which the last one by the user counts."""
    answer: str = "answer"
    """Text, a number, a list of one, or a list of messages, of which the last one by the assistant counts."""
    answer_is: Literal["plain", "boxed", "hashes", "index", "choice"] = "plain"
    """The whole field, what stands in its last \\boxed{}, what follows its last ####, the right option's number from 0
    (alone or in a list), or the right option itself."""
    choices: str | tuple[str, ...] = ""
    """A list of options, or columns of one option each; the answer is then a letter. Where the answer's own column is
    among them, the question alone decides their order. Empty: no multiple choice."""
    wrong_choices: tuple[str, ...] = ()
    """Columns of one wrong option each, where there is no list: with the answer they are the options, in an order that
    the question alone decides."""
    level: str = "level"
    """A difficulty, for reports and for draws: a number, or a text with one such as "Level 5". May be absent."""
    subject: str = "subject"
    """A field of knowledge, for draws. May be absent."""

    @property
    def options(self) -> tuple[str, ...]:
        """Columns of one option each."""
        if self.wrong_choices:
            return (self.answer, *self.wrong_choices)
        return self.choices if isinstance(self.choices, tuple) else ()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.choices and self.wrong_choices:
            raise ValueError("choices and wrong_choices are two ways of saying the same; name one of them")
        if self.wrong_choices and self.answer_is != "choice":
            raise ValueError("answer_is = 'choice' and wrong_choices go together; give both or neither")
        if self.answer_is == "choice" and not self.choices and not self.wrong_choices:
            raise ValueError("answer_is = 'choice' and choices or wrong_choices go together; give both or neither")
        if self.answer_is == "index" and not self.choices:
            raise ValueError("answer_is = 'index' is a place among choices; name their column")
        if isinstance(self.choices, tuple) and self.answer in self.choices and self.answer_is != "choice":
            raise ValueError(f"{self.answer!r} is the answer and an option, too; set answer_is to 'choice'")
        return self


DATASETS: dict[str, Columns] = {
    "nvidia/OpenMathReasoning": Columns(id="", answer="expected_answer", subject="problem_source"),
    "EleutherAI/hendrycks_math": Columns(id="", answer="solution", answer_is="boxed", subject="type"),
    "DigitalLearningGmbH/MATH-lighteval": Columns(id="", answer="solution", answer_is="boxed", subject="type"),
    "HuggingFaceH4/MATH-500": Columns(id="unique_id"),
    "agentica-org/DeepScaleR-Preview-Dataset": Columns(id=""),
    "zwhe99/DeepMath-103K": Columns(
        id="", problem="question", answer="final_answer", level="difficulty", subject="topic"
    ),
    "open-r1/OpenR1-Math-220k": Columns(id="uuid", subject="problem_type"),
    "BytedTsinghua-SIA/DAPO-Math-17k": Columns(id="", problem="prompt", answer="reward_model.ground_truth"),
    "PRIME-RL/Eurus-2-RL-Data": Columns(
        id="", problem="prompt", answer="reward_model.ground_truth", subject="data_source"
    ),
    "SynthLabsAI/Big-Math-RL-Verified": Columns(id="", subject="source"),
    "openai/gsm8k": Columns(id="", problem="question", answer_is="hashes"),
    "HuggingFaceH4/aime_2024": Columns(),
    "math-ai/aime25": Columns(),
    "math-ai/amc23": Columns(problem="question"),
    "MathArena/hmmt_feb_2025": Columns(id="problem_idx"),
    "hails/agieval-gaokao-mathqa": Columns(id="", problem="query", answer="gold", answer_is="index", choices="choices"),
    "TIGER-Lab/MMLU-Pro": Columns(id="question_id", problem="question", choices="options", subject="category"),
    "Idavidrein/gpqa": Columns(
        id="Record ID",
        problem="Question",
        answer="Correct Answer",
        answer_is="choice",
        subject="High-level domain",
        wrong_choices=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
    ),
}
"""By the data set's name, from its card or from published code that reads it. Tested on made-up rows of the same shape:
no machine here reaches the hub. A sixteenth of the rows of PRIME-RL/Eurus-2-RL-Data are programs to write, whose
"answers" are test cases: they are set aside."""
