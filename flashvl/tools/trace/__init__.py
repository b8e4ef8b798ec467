"""`flashvl trace`: one run of a model told stage by stage, down to single layers."""
