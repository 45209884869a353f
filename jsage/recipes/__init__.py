"""Whole jobs, for who wants a result and not a loop: training with early stopping, records, reports."""

from jsage.recipes.loop import Run as Run
from jsage.recipes.loop import StoppingPolicy as StoppingPolicy
from jsage.recipes.loop import rank_by_score as rank_by_score
from jsage.recipes.loop import rank_by_score_and_loss as rank_by_score_and_loss
from jsage.recipes.loop import train_seeds as train_seeds
from jsage.recipes.loop import train_until_stopped as train_until_stopped
from jsage.recipes.options import DataOptions as DataOptions
from jsage.recipes.options import RunOptions as RunOptions
from jsage.recipes.options import option as option
from jsage.recipes.plots import node_colors as node_colors
from jsage.recipes.plots import save_plots as save_plots
from jsage.recipes.plots import save_tsne as save_tsne
from jsage.recipes.record import Record as Record
from jsage.recipes.report import Scores as Scores
from jsage.recipes.report import baseline as baseline
from jsage.recipes.report import print_scores as print_scores
from jsage.recipes.report import print_tables as print_tables
from jsage.recipes.report import summarize as summarize
from jsage.recipes.report import summarize_all as summarize_all
from jsage.recipes.scaling import SCALES as SCALES
from jsage.recipes.scaling import Scaling as Scaling
from jsage.recipes.scaling import fit_scaling as fit_scaling
from jsage.recipes.tasks import TASKS as TASKS
from jsage.recipes.tasks import Task as Task
from jsage.recipes.tasks import make_task as make_task
