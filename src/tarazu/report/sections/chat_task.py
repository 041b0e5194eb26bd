"""The sections that the chat task puts between the verdict and the comparison."""

from tarazu.report.sections.before import before_section
from tarazu.report.sections.data import data_section
from tarazu.report.sections.methods import methods_section
from tarazu.report.sections.model import model_section

SECTIONS = [data_section, model_section, before_section, methods_section]
