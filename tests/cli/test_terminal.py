import time

from gradrecipes.cli.terminal import PartsShown


def test_a_line_has_the_time_of_its_own_part():
    with PartsShown(quiet=True) as parts:
        parts.tell("clip, seed 0, 40 steps")
        time.sleep(0.02)
        parts.tell("clip, seed 0, 40 steps: 0.512")
        time.sleep(0.2)  # between two trials
        parts.tell("guard, seed 0, 40 steps")
        clip, guard = parts._bar.tasks
    assert clip.description == "clip, seed 0, 40 steps: 0.512"
    assert 0.02 <= clip.finished_time < 0.2
    assert guard.description == "guard, seed 0, 40 steps"
