"""The sections that the captions task puts between the verdict and the comparison."""

from tarazu.report.sections.captions.data import data_section
from tarazu.report.sections.captions.methods import methods_section
from tarazu.report.sections.captions.model import baselines_section, model_section

SECTIONS = [data_section, model_section, baselines_section, methods_section]
