"""Who writes the traces that are learnt from: the student itself, another model, or an endpoint."""

from __future__ import annotations

from conf.cot_distillation import EndpointTeacher, Teacher
from conf.settings import Sampling
from tasks.artifacts import ArtifactRef
from tasks.distillation import adopt_traces, write_traces
from tasks.sampling import sample_traces
from tasks.workplace import Workplace


def teach(
    place: Workplace, teacher: Teacher, sampling: Sampling, seed: int, base: ArtifactRef, problems: ArtifactRef
) -> ArtifactRef:  # fmt: skip
    """The teacher's traces in the token ids of `base`, the student."""
    if isinstance(teacher, EndpointTeacher):
        return write_traces(place, model=base, problems=problems, teacher=teacher, sampling=sampling, seed=seed)
    if not teacher.model:
        return sample_traces(place, model=base, problems=problems, sampling=sampling, seed=seed)
    drawn = sample_traces(place, model=place.model(teacher.model), problems=problems, sampling=sampling, seed=seed)
    return adopt_traces(place, model=base, traces=drawn)
