"""Picture folders, splits, decoding, augmentation, batches, texts and the embedded demo pictures.

Usable alone: what comes out are plain NumPy arrays, for any training loop.
"""

from jgraph.data._decode import PICTURE_EXTENSIONS as PICTURE_EXTENSIONS
from jgraph.data._decode import PictureSource as PictureSource
from jgraph.data._decode import augment_picture as augment_picture
from jgraph.data._decode import decode_picture as decode_picture
from jgraph.data._demo import DEMO_NAME as DEMO_NAME
from jgraph.data._demo import write_demo as write_demo
from jgraph.data._fast import libraries as libraries
from jgraph.data._feature_cache import FeatureCache as FeatureCache
from jgraph.data._folders import PictureSet as PictureSet
from jgraph.data._folders import check_trainable as check_trainable
from jgraph.data._folders import list_pictures as list_pictures
from jgraph.data._folders import scan as scan
from jgraph.data._pictures import Batch as Batch
from jgraph.data._pictures import Pictures as Pictures
from jgraph.data._splits import Splits as Splits
from jgraph.data._splits import find_splits as find_splits
from jgraph.data._splits import stratified_folds as stratified_folds
from jgraph.data._splits import stratified_holdout as stratified_holdout
from jgraph.data._text import TextBatch as TextBatch
from jgraph.data._text import Windows as Windows
from jgraph.data._text import read_text as read_text
