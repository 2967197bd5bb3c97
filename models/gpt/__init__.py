"""GPT: a transformer that predicts the next token, small enough to read in one go."""

from jgraph.models.gpt._config import GPTConfig as GPTConfig
from jgraph.models.gpt._modeling import GPT as GPT
