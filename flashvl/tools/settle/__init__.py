"""`flashvl settle`: asks a model under which of the assumptions it was trained."""
