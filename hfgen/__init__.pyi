from hfgen.api.calls import analyze as analyze
from hfgen.api.calls import card as card
from hfgen.api.calls import compare_samplers as compare_samplers
from hfgen.api.calls import edit as edit
from hfgen.api.calls import evaluate as evaluate
from hfgen.api.calls import load as load
from hfgen.api.calls import publish_all as publish_all
from hfgen.api.calls import push as push
from hfgen.api.calls import recipes as recipes
from hfgen.api.calls import results as results
from hfgen.api.calls import sample as sample
from hfgen.api.calls import train as train
from hfgen.config import ClassifierConfig as ClassifierConfig
from hfgen.config import CycleGANConfig as CycleGANConfig
from hfgen.config import DDPMConfig as DDPMConfig
from hfgen.config import GANConfig as GANConfig
from hfgen.config import TranslationConfig as TranslationConfig
from hfgen.config import VAEConfig as VAEConfig
from hfgen.config.commands import AnalyzeConfig as AnalyzeConfig
from hfgen.config.commands import CompareSamplersConfig as CompareSamplersConfig
from hfgen.config.commands import EvaluateConfig as EvaluateConfig
from hfgen.config.commands import SampleConfig as SampleConfig
from hfgen.config.commands import TranslateConfig as TranslateConfig
from hfgen.utils.errors import PublishingError as PublishingError
from hfgen.utils.errors import TrainingError as TrainingError
from hfgen.utils.errors import UserError as UserError

__version__: str
