"""The ablation: arms that differ in the fusion and in what trains, their scores and tables."""
