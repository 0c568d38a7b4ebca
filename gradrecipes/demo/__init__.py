"""The main job on real data: a training that dies, why, and the same training kept alive and repaired."""
