"""LP and MIP formulations of verification problems (Tjeng et al. 2018)."""
