"""One update, a scanned epoch, early stopping, checkpoints: knows no graph."""

from jsage.train.update import EarlyStopping as EarlyStopping
from jsage.train.update import TrainState as TrainState
from jsage.train.update import Update as Update
from jsage.train.update import init_state as init_state
from jsage.train.update import init_stopping as init_stopping
from jsage.train.update import make_update as make_update
from jsage.train.update import observe as observe
from jsage.train.update import should_stop as should_stop
from jsage.train.update import train_epoch as train_epoch
