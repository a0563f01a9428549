"""Recipe YAMLs, found by verl's trainer as `pkg://verl_toolrl.recipes` through Hydra's search path."""
