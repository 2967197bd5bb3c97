"""Handles: what a text such as `hf:owner/name` names, brought to this machine and kept."""

from jgraph._handles._cache import PARTIAL as PARTIAL
from jgraph._handles._cache import Cache as Cache
from jgraph._handles._cache import Entry as Entry
from jgraph._handles._cache import is_offline as is_offline
from jgraph._handles._forms import FORMS as FORMS
from jgraph._handles._forms import HuggingFaceHandle as HuggingFaceHandle
from jgraph._handles._forms import LocalHandle as LocalHandle
from jgraph._handles._forms import PackageHandle as PackageHandle
from jgraph._handles._forms import UrlHandle as UrlHandle
from jgraph._handles._forms import parse_handle as parse_handle
from jgraph._handles._http import download as download
from jgraph._handles._http import sha256_of as sha256_of
from jgraph._handles._huggingface import HuggingFace as HuggingFace
from jgraph._handles._huggingface import huggingface_hub as huggingface_hub
from jgraph._handles._limits import Limits as Limits
from jgraph._handles._package import find_in_package as find_in_package
from jgraph._handles._resolve import resolve as resolve
