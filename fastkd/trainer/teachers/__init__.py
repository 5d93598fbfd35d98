"""The sources of a batch's soft targets: a model, a server, the student's own base, or a cache on disk."""

from fastkd.trainer.teachers.base import Teacher
from fastkd.trainer.teachers.cached import CachedTeacher
from fastkd.trainer.teachers.crossed import CrossedTeacher
from fastkd.trainer.teachers.live import BaseTeacher, LiveTeacher
from fastkd.trainer.teachers.own import SelfTeacher
from fastkd.trainer.teachers.prompted import PromptedTeacher
from fastkd.trainer.teachers.remembered import Memory, RememberedTeacher
from fastkd.trainer.teachers.reordered import ReorderedTeacher, plain_teacher
from fastkd.trainer.teachers.served import ServedTeacher
from fastkd.trainer.teachers.several import MixedTeachers, RoutedTeachers
from fastkd.trainer.teachers.source import TeacherSource, require_model

__all__ = [
    "BaseTeacher",
    "CachedTeacher",
    "CrossedTeacher",
    "LiveTeacher",
    "Memory",
    "MixedTeachers",
    "PromptedTeacher",
    "RememberedTeacher",
    "ReorderedTeacher",
    "RoutedTeachers",
    "SelfTeacher",
    "ServedTeacher",
    "Teacher",
    "TeacherSource",
    "plain_teacher",
    "require_model",
]
