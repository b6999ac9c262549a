"""Label the texts of files with a bundle: files of any size, in memory that doesn't grow with them."""

from embedtune.predict.job import Predicted, predict_file

__all__ = ["Predicted", "predict_file"]
