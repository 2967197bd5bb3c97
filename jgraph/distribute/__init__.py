"""Where a program runs: on one device or split over many, without a word of it in the program."""

from jgraph.distribute._batches import Batches as Batches
from jgraph.distribute._batches import Prefetch as Prefetch
from jgraph.distribute._create import auto as auto
from jgraph.distribute._create import create as create
from jgraph.distribute._create import names as names
from jgraph.distribute._data_parallel import DataParallel as DataParallel
from jgraph.distribute._fsdp import FSDP as FSDP
from jgraph.distribute._hosts import agreed as agreed
from jgraph.distribute._hosts import gathered as gathered
from jgraph.distribute._hosts import is_local as is_local
from jgraph.distribute._hosts import on_each_host as on_each_host
from jgraph.distribute._hosts import wait_for_all as wait_for_all
from jgraph.distribute._initialize import initialize as initialize
from jgraph.distribute._one_device import OneDevice as OneDevice
from jgraph.distribute._pmap import Pmap as Pmap
from jgraph.distribute._strategy import Strategy as Strategy
