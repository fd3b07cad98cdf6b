"""Column names of data sets on the Hugging Face hub."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from conf.base import Settings


class Columns(Settings):
    """Names of a data set's columns. Dots reach into objects and lists: `reward_model.ground_truth`,
    `conversations.0.value`."""

    id: str = "id"
    """Column of the row id. Empty: the row's position is used."""
    problem: str = "problem"
    """Column of the problem: text, or a list of messages, whose last user message is used."""
    answer: str = "answer"
    """Column of the answer: text, a number, a list with one entry, or a list of messages, whose last assistant message
    is used."""
    answer_is: Literal["plain", "boxed", "hashes", "index", "choice", "conclusion"] = "plain"
    """Format of the answer column. `plain`: the whole field. `boxed`: content of the last \\boxed{}. `hashes`: text
    after the last ####. `index`: zero-based index of the correct option, alone or in a list. `choice`: the correct
    option itself. `conclusion`: text between <CONCLUSION> and </CONCLUSION>, as in LLaVA-CoT-100k."""
    choices: str | tuple[str, ...] = ""
    """For multiple choice: column with a list of options, or one column per option. The answer is stored as a letter.
    If the answer's own column is one of them, the options are shuffled with the question as seed. Empty: not multiple
    choice."""
    wrong_choices: tuple[str, ...] = ()
    """Columns of the wrong options, one each, for data sets without a list of options. They are shuffled together with
    the answer, with the question as seed."""
    images: str | tuple[str, ...] = ""
    """Columns of the images: a file's path, its bytes, `{bytes, path}`, a data: URL, or a list of these. `<image>` and
    `<image 2>` in the problem say where they stand; others come first. Empty: problems without images."""
    level: str = "level"
    """Column of the difficulty, for reports and stratified draws: a number, or text that contains one, such as "Level
    5". May be missing."""
    subject: str = "subject"
    """Column of the subject, for stratified draws. May be missing."""

    @property
    def image_columns(self) -> tuple[str, ...]:
        return (self.images,) if isinstance(self.images, str) and self.images else tuple(self.images)

    @property
    def options(self) -> tuple[str, ...]:
        """Columns that hold one option each."""
        if self.wrong_choices:
            return (self.answer, *self.wrong_choices)
        return self.choices if isinstance(self.choices, tuple) else ()

    @model_validator(mode="after")
    def _consistent_columns(self) -> Self:
        if self.choices and self.wrong_choices:
            raise ValueError("choices and wrong_choices both name the options; set only one of them")
        if self.wrong_choices and self.answer_is != "choice":
            raise ValueError("answer_is = 'choice' and wrong_choices go together; give both or neither")
        if self.answer_is == "choice" and not self.choices and not self.wrong_choices:
            raise ValueError("answer_is = 'choice' and choices or wrong_choices go together; give both or neither")
        if self.answer_is == "index" and not self.choices:
            raise ValueError("answer_is = 'index' needs the column of the options; set choices")
        if isinstance(self.choices, tuple) and self.answer in self.choices and self.answer_is != "choice":
            raise ValueError(f"{self.answer!r} is both the answer and an option; set answer_is to 'choice'")
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
    "MARIO-Math-Reasoning/Gaokao2023-Math-En": Columns(problem="question"),
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
    "Xkev/LLaVA-CoT-100k": Columns(
        id="", problem="conversations.0.value", answer="conversations.1.value", answer_is="conclusion", images="image"
    ),
    "AI4Math/MathVista": Columns(
        id="pid", problem="question", answer_is="choice", choices="choices", images="decoded_image"
    ),
    "MathLLMs/MathVision": Columns(problem="question", choices="options", images="decoded_image"),
    "Lin-Chen/MMStar": Columns(id="index", problem="question", subject="category", images="image"),
    "MMMU/MMMU": Columns(
        problem="question",
        choices="options",
        subject="subfield",
        images=("image_1", "image_2", "image_3", "image_4", "image_5", "image_6", "image_7"),
    ),
}
"""By data set name, taken from its card or from published code that reads it. Tested on synthetic rows of the same
format, without access to the hub. One sixteenth of PRIME-RL/Eurus-2-RL-Data are programming problems whose answers are
test cases; those rows are dropped."""
