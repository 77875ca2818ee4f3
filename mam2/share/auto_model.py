"""The file by which transformers' AutoModel finds this package's models; it lies in the folder of the weights."""

CODE_FILE = "modeling_mam2.py"
CODE = '''"""The models of this folder for transformers' AutoModel; they are in the package mam2."""

from mam2.share.transformers_model import Mam2Config, Mam2ForVideoClassification, Mam2Model

__all__ = ["Mam2Config", "Mam2ForVideoClassification", "Mam2Model"]
'''
