"""Recipes: YAML files and dotted overrides, validated in milliseconds without torch or ray."""

from llmrec_ray.config.data import (
    BehaviourConfig,
    Cooccurrence,
    DataConfig,
    FileFormat,
    FileSection,
    LogColumns,
    LogConfig,
    RobotRules,
    TableColumn,
    TableConfig,
    TimeUnit,
    TimeWindow,
)
from llmrec_ray.config.encoder import EncoderConfig, Pooling
from llmrec_ray.config.evaluate import BaselineName, EvaluateConfig
from llmrec_ray.config.events import EventsConfig
from llmrec_ray.config.keys import ApiKey
from llmrec_ray.config.load import load_recipe, overridden_workspace, override_recipe, recipe_names, validate_recipe
from llmrec_ray.config.model import CascadeConfig, ContextConfig, FusionConfig, FusionMode, ItemItemConfig, ModelConfig
from llmrec_ray.config.recipe import Recipe
from llmrec_ray.config.search import as_override, check_campaign, domain_of, with_settings
from llmrec_ray.config.section import ColdSignalName, MergeName, SignalName, SourceName
from llmrec_ray.config.serve import (
    AppConfig,
    DeadlineConfig,
    FollowConfig,
    GatherConfig,
    IndexConfig,
    Replicas,
    RequestLimits,
    RetrievalConfig,
    ServeConfig,
)
from llmrec_ray.config.train import AugmentConfig, MinedConfig, Sharding, TrainConfig
from llmrec_ray.config.tune import (
    Choice,
    Domain,
    IntRange,
    LogUniform,
    PbtConfig,
    TuneConfig,
    Uniform,
    needs_no_training,
)

__all__ = [
    "ApiKey",
    "AppConfig",
    "AugmentConfig",
    "BaselineName",
    "BehaviourConfig",
    "CascadeConfig",
    "Choice",
    "ColdSignalName",
    "ContextConfig",
    "Cooccurrence",
    "DataConfig",
    "DeadlineConfig",
    "Domain",
    "EncoderConfig",
    "EvaluateConfig",
    "EventsConfig",
    "FileFormat",
    "FileSection",
    "FollowConfig",
    "FusionConfig",
    "FusionMode",
    "GatherConfig",
    "IndexConfig",
    "IntRange",
    "ItemItemConfig",
    "LogColumns",
    "LogConfig",
    "LogUniform",
    "MergeName",
    "MinedConfig",
    "ModelConfig",
    "PbtConfig",
    "Pooling",
    "Recipe",
    "Replicas",
    "RequestLimits",
    "RetrievalConfig",
    "RobotRules",
    "ServeConfig",
    "Sharding",
    "SignalName",
    "SourceName",
    "TableColumn",
    "TableConfig",
    "TimeUnit",
    "TimeWindow",
    "TrainConfig",
    "TuneConfig",
    "Uniform",
    "as_override",
    "check_campaign",
    "domain_of",
    "load_recipe",
    "needs_no_training",
    "overridden_workspace",
    "override_recipe",
    "recipe_names",
    "validate_recipe",
    "with_settings",
]
