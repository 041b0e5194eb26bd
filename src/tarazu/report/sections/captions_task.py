"""The sections that the captions task puts between the verdict and the comparison."""

from tarazu.report.sections.captions_data import data_section
from tarazu.report.sections.captions_methods import methods_section
from tarazu.report.sections.captions_model import model_section, yardsticks_section

SECTIONS = [data_section, model_section, yardsticks_section, methods_section]
