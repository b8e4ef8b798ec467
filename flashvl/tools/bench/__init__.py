"""`flashvl bench`: how fast a model runs, held against the machine's own limits."""
