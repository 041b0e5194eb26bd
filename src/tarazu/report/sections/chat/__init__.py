"""The sections that the chat task puts between the verdict and the comparison."""

from tarazu.report.sections.chat.before_training import before_training_section
from tarazu.report.sections.chat.data import data_section
from tarazu.report.sections.chat.methods import methods_section
from tarazu.report.sections.chat.model import model_section

SECTIONS = [data_section, model_section, before_training_section, methods_section]
