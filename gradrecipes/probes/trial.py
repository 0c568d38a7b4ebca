"""A short trial with the user's own optimizer and batches, and, if it goes wrong, again with one thing changed.

A hundred steps over a few batches, again and again, so that each batch is compared with itself. Where that run breaks,
diverges, stalls or ends no better than a constant prediction, the same steps are run from the same start with one
thing changed: scaled inputs or targets, weights of usual size, another learning rate, warm-up, larger batches. What
fixes the run, also in twice the steps, is what was wrong with it.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np

from gradrecipes.compat.keras_private import unfrozen
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.description import Description
from gradrecipes.core.trace.probes import Probes
from gradrecipes.core.trace.trial_reading import (
    LINEAR_HEAD,
    UNFROZEN,
    UNREGULARIZED,
    USUAL_OPTIMIZER,
    OutputTrial,
    TrialReading,
    VariationResult,
    at_rate,
)
from gradrecipes.diagnosis.facts.activation_mismatches import reaches_partly
from gradrecipes.diagnosis.facts.data_facts import heads
from gradrecipes.diagnosis.facts.divergences import (
    ahead,
    climbs_at_highest,
    end_over_baseline,
    is_lost_later,
    is_outrun,
)
from gradrecipes.diagnosis.judgement import UNDECIDED, judge, outweighed_part
from gradrecipes.diagnosis.outcome import (
    HALVED_END,
    LEARNING,
    LEARNS_BELOW,
    STALLED,
    Verdict,
    fixes,
    rival_losses,
    verdict,
)
from gradrecipes.probes.answers import Answers, sample_spread
from gradrecipes.probes.attention import AttentionProbe
from gradrecipes.probes.drawn_once import drawn_once
from gradrecipes.probes.held_back import held_back_readings, losses_held_back, standard_error
from gradrecipes.probes.loss import losses_by_row
from gradrecipes.probes.optimizer import (
    hold_rate,
    rate_to_hold,
    read_planned_rates,
    try_highest_rate,
    try_lower_rates,
)
from gradrecipes.probes.output_losses import Baselines, OutputLosses, pairs_samples, step_acts_like
from gradrecipes.probes.own_step import learned_simply, misread_cross_entropies, weight_penalties
from gradrecipes.probes.reach import StillWeights, unreached_data
from gradrecipes.probes.signal import failure, signal
from gradrecipes.probes.varied.runs import (
    VARIED_BATCHES,
    VARIED_STEPS,
    balanced,
    freed,
    vary,
    vary_one_at_a_time,
)
from gradrecipes.probes.varied.standard_twin import linear_heads, standard_twin
from gradrecipes.probes.varied.variations import (
    HIGHER_RATES,
    LOWER_RATES,
    Context,
    bad_samples,
    fitting_weights,
    suspects,
    unregularized,
    usual_optimizer,
    without,
)
from gradrecipes.training.trial import Trial, finite, step_error
from gradrecipes.training.trial_data import TrialData, essence

logger = logging.getLogger(__name__)

STEPS = 100  # of the trial; what breaks later than that breaks for other reasons
BATCHES, HELD_BACK = 25, 32  # that it runs over, four times, and at most as many that it leaves out and is judged on
VARIED_AT_MOST = 4  # steps of all variations together, before they are confirmed, over those of the trial
MAX_WORK_TO_GO_ON = 5e7  # weights times samples and places in a step of a trial that goes on: .05 s on a core
FURTHER, LONGER = 4, 14  # trials of further steps where one was too short to tell; at most, if so many are planned
WELL_LEARNED = 0.1  # end over the baseline, beyond which it is asked whether a linear function learns more
ALIKE = 1e-3  # spread of answers over their size, below which a loss of their mean is no wonder


def try_out(
    model: keras.Model,
    data: TrialData,
    description: Description,
    probes: Probes,
    *,
    seed: int,
    steps: int = STEPS,
    planned_steps: int | None = None,
    attention: AttentionProbe | None = None,
    validation: Sequence[Any] = (),
    tell: Callable[[str], None],
) -> tuple[Trace, Verdict]:
    """Run the trial and what it calls for; return its record, `probes.trial` filled in, and how it went."""
    batches = data.cut(BATCHES, seed=seed, **suspects(probes))
    steps = steps // len(batches) * len(batches) if len(batches) < steps else steps
    marks = bad_samples(probes.data, batches)
    usable = batches if marks is None else without(batches, marks)  # one outlying target would set the baseline
    baselines = Baselines(model, description, probes.loss, usable, corrupt=marks is not None)
    losses = OutputLosses(model, description, batches, probes.data)
    before = losses.measured()
    penalty = losses.penalty
    still = StillWeights(model, batches[0])
    with contextlib.ExitStack() as stack:
        rates = read_planned_rates(model, description, trial_steps=steps, steps=planned_steps)
        trial = Trial(model, batches, steps=max(steps, 4 * VARIED_STEPS), outputs=probes.signal.layers)
        failed: Exception | None = None
        try:
            run = stack.enter_context(trial).recorded(steps)
        except Exception as error:
            stack.close()
            failed = error
        trace = trial.trace
        layers = trace.description.layers or description.layers  # the trial has read their initial weights
        trace.description, trace.probes = replace(description, layers=layers), probes
        if failed is not None:
            if step_error(model, batches) is not None:
                trace.probes = replace(probes, failure=failure("step", failed, batch=batches[0]))
            else:  # what the record of the step raised is no fault of the program
                logger.warning("The trial of %r could not be recorded: %s", model.name, essence(failed))
            return trace, verdict(trace)
        outputs = losses.compared(before, losses.measured()) or baselines.compared(run.loss)
        penalties = (penalty, losses.penalty) if penalty or losses.penalty else None
        reading = TrialReading(
            steps=len(run.loss),
            batches=len(batches),
            constant_baseline_loss=baselines.of_trial,
            broken=run.broken,
            broken_batch=trial.broken_batch,
            autopsy=trial.autopsy,
            logs={name: tuple(finite(value) for value in values) for name, values in run.logs.items()},
            seconds=run.seconds,
            outputs=outputs,
            rates=rates,
            penalties=penalties,
            still=() if run.broken is not None else still.after(trial),
            moving_target=bool(description.own_train_step) and trial.moving_target,
            cut_off=trial.cut_off.lasting if description.own_train_step else (),
        )
        trace.probes = replace(probes, trial=reading, signal_after=signal(model, batches[0], attention=attention))
        if rival_losses(trace):
            trace.steps["loss"][:], run = np.nan, replace(run, loss=np.full_like(run.loss, np.nan))
        seen = verdict(trace)
        spread = None if run.broken is not None else sample_spread(model, batches[0])
        reading = replace(reading, sample_spread=spread)
        known = not penalty and (baselines.of_trial is not None or baselines.fitted is not None)
        answers = Answers.asked(trial, description, known=known) if run.broken is None else None
        if answers is not None and seen.state in (LEARNING, STALLED):
            read = answers.compared()
            answers = None if read is not None and read.equal and (spread or 0.0) > ALIKE else answers
            reading = replace(reading, answers=None if answers is None else read)
            trace.probes = replace(trace.probes, trial=reading)
        outweighed = description.own_train_step and outweighed_part(reading) is not None
        may_go_on = outweighed or seen.state in (LEARNING, STALLED) or reading.moving_target
        at_end = trial.save() if may_go_on and run.broken is None else []
        little = seen.end_over_baseline > HALVED_END
        open_still = may_go_on and run.broken is None and (little or judge(trace, ()).verdict == UNDECIDED)
        asked = description.own_train_step and seen.state == LEARNING and not outputs
        left = (planned_steps or 0) - len(run.loss)  # of a planned training, that the trial has not seen
        cheap = (description.trainable_entries or 0) * data.batch_size * data.places < MAX_WORK_TO_GO_ON
        longer = seen.state == LEARNING and left >= len(batches) and cheap
        if description.own_train_step:
            reading = replace(reading, pairs_samples=pairs_samples(trial, probes.loss.outputs))
            like = step_acts_like(trial, probes.loss.outputs, run.loss[0] if len(run.loss) else math.nan)
            read = replace(probes.loss, misread=misread_cross_entropies(trial), unreached=unreached_data(trial))
            if like is not None:
                read = replace(read, outputs=(replace(probes.loss.outputs[0], acts_like=like),))
            trace.probes = replace(trace.probes, loss=read)
        if asked and reading.pairs_samples is not False:
            baselines.ask_step(trial, run.loss[0])
            reading = replace(reading, outputs=(outputs := baselines.compared(run.loss)))
            trace.probes = replace(trace.probes, trial=reading)
            open_still = open_still or judge(trace, ()).verdict == UNDECIDED
        ended = at_end if outweighed or open_still or longer else []
        others = data.held_back(HELD_BACK, batches=BATCHES, seed=seed) if at_end else []
        compares = not (outweighed or description.own_train_step or description.own_loss)
        by_row = losses_by_row(model, len(description.outputs)) if compares else []
        reading = replace(reading, rates=try_highest_rate(trial, rates, seen, trial_steps=steps, tell=tell))
        variations: dict[str, VariationResult] = {}
        lost = reading.answers is not None and len(reading.answers.lost) > 0
        behind = run.broken is None and (lost or not all(one.learned for one in outputs))
        loss_seen = run.broken is not None or np.isfinite(run.loss).any()  # else no variation could be judged
        if loss_seen and (seen.suspicious or behind or fitting_weights(model, probes.signal.weights)):
            tell(f"the trial is {seen.state}: varying one thing at a time")
            context = Context(trial, description, probes, seen, trial.batches[:VARIED_BATCHES])
            baselines.answers = None if reading.answers is None or reading.answers.depend else answers
            variations = vary_one_at_a_time(context, baselines, at_most=VARIED_AT_MOST * steps)
        if behind:
            tell("balancing the terms of the loss")
            variations |= balanced(trial, losses, before, penalty, steps=len(run.loss))
        if ended and (outweighed or seen.state == LEARNING or not any(fixes(one, seen) for one in variations.values())):
            tell("going on where the trial ended")
            trial.load(ended)
            still = outweighed or open_still or climbs_at_highest(reading.rates)
            more = max(min((LONGER if still and cheap else FURTHER) * steps, left), FURTHER * steps if still else 0)
            how = {"answers": answers, "fitted": baselines.fitted, "outweighed": outweighed}
            reading = _gone_on(trial, reading, losses, before, more, **how)
            at_end = trial.save()
            variations |= try_lower_rates(trial, reading, seen) if is_lost_later(reading, seen) else {}
            if reading.rates is not None and (held_rate := rate_to_hold(reading.rates)) is not None:
                trial.load(at_end)
                unseen = partial(losses_held_back, model, by_row, others or validation)
                beside = {"rate": held_rate, "steps": more, "unseen": unseen}
                reading = replace(reading, rates=hold_rate(trial, ended, reading.rates, seen, **beside))
        if at_end and (drawn := drawn_once(trial, description, at_end)) is not None:
            trace.probes = replace(trace.probes, loss=replace(trace.probes.loss, drawn_once=drawn))
        if answers is not None and (read := reading.answers) is not None and not read.depend and read.slope != 0.0:
            tell("leaving out terms of the loss")
            held = answers.held_back(read, run.logs, reading.steps + reading.further_steps)
            added = held.held_by is not None and penalties is not None
            reading = replace(reading, answers=replace(held, held_by="what layers add to the loss") if added else held)
        trial.load(at_end)
        if at_end and by_row:
            reading = replace(reading, held_back=held_back_readings(model, by_row, batches, others, validation))
        trace.probes = replace(trace.probes, trial=replace(reading, variations=variations))
        judged = judge(trace, ()).verdict
        if (judged == UNDECIDED or not end_over_baseline(trace) <= WELL_LEARNED) and not seen.unhealthy:
            tell("fitting a simple function, and the same net with standard settings, to the same data")
            asked = at_end and (seen.learned or not any(fixes(one, seen) for one in variations.values()))
            twin = standard_twin(trial, trace, batches, (others, validation)) if asked else None
            reading = replace(reading, linear=learned_simply(trial, description, probes.data, by_row), twin=twin)
            trace.probes = replace(trace.probes, trial=replace(reading, variations=variations))
        if (judged != UNDECIDED and is_outrun(trace)) or ahead(trace) is not None:  # another rate may do better
            for rate in (*LOWER_RATES[:2], *HIGHER_RATES[:2]):
                varied = vary(trial, baselines, rate=rate, batches=batches, steps=len(run.loss))
                variations = ({} if varied is None else {at_rate(rate).name: varied}) | variations
    own = description.own_train_step or description.optimizer is None or description.optimizer.count != 1
    if seen.suspicious and not own and any(layer.kernel for layer in description.frozen):
        tell("training what is frozen, too")
        variations |= freed(UNFROZEN, unfrozen(model), model, batches[:VARIED_BATCHES], baselines, 2 * VARIED_STEPS)
    fixed = any(fixes(one, seen) and (one.over_baseline or 0.0) < LEARNS_BELOW for one in variations.values())
    if run.broken is None and description.regularization and judged == UNDECIDED and not fixed:
        tell("training without what holds the net back")
        taken = reading.steps + reading.further_steps  # as many as with it
        variations |= freed(UNREGULARIZED, unregularized(model), model, batches, baselines, taken)
    if run.broken is None and any(map(reaches_partly, heads(trace))):
        tell("training with a linear last layer")
        taken = reading.steps + reading.further_steps
        variations |= freed(LINEAR_HEAD, linear_heads(model), model, batches, baselines, taken)
    unusual = {} if own or description.optimizer is None else description.optimizer.unusual
    if unusual and not fixed and (seen.suspicious or judged == UNDECIDED):
        tell("training with the usual settings of the optimizer")
        variations |= freed(USUAL_OPTIMIZER, usual_optimizer(model, unusual), model, batches, baselines, len(trace))
    trace.probes = replace(trace.probes, trial=replace(reading, variations=variations))
    return trace, seen


def _gone_on(
    trial: Trial,
    reading: TrialReading,
    losses: OutputLosses,
    before: list[Any],
    more: int,
    *,
    answers: Answers | None,
    fitted: float | None,
    outweighed: bool,
) -> TrialReading:
    """Return the reading with how each output does in further steps, and each part of an own loss, if one is lost."""
    try:
        run = trial.continued([1.0] * more)
        if run.broken is not None:
            trial.examine(broken := reading.steps + run.broken)
            return replace(reading, further_broken=broken, broken_batch=trial.broken_batch, autopsy=trial.autopsy)
        if len(run.loss) < len(trial.batches):
            return reading
        last = run.loss[-len(trial.batches) :]
        start = float(np.mean(reading.logs["loss"][: len(trial.batches)])) if "loss" in reading.logs else math.nan
        known = fitted if reading.constant_baseline_loss is None else reading.constant_baseline_loss
        ended = OutputTrial(0, "loss", finite(start), float(last.mean()), known, standard_error(last))
        further = losses.compared(before, losses.measured()) or ((ended,) if np.isfinite(last).all() else ())
        reading = replace(reading, further=further, further_steps=len(run.loss))
        if answers is not None and reading.answers is not None:
            reading = replace(reading, answers=answers.compared())
        if not outweighed:
            return reading
        later = {name: float(np.median(values[-len(trial.batches) :])) for name, values in run.logs.items() if values}
        return replace(reading, later=later, weight_penalties=weight_penalties(trial, reading.logs))
    except Exception:  # a train step that cannot go on
        logger.debug("The trial could not go on.", exc_info=True)
        return reading
