"""tmp"""
from ravine import _core
