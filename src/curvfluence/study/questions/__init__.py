"""One ladder, several questions: which rung is best may depend on what is asked."""

from curvfluence.study.questions.records import Questions, read_questions
from curvfluence.study.questions.run import QuestionSpec, run_questions

__all__ = ["QuestionSpec", "Questions", "read_questions", "run_questions"]
