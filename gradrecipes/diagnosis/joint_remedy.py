"""One remedy for several causes, where the trial shows that mending one of them alone is not enough."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradrecipes.core.findings import Finding, Prescription
from gradrecipes.core.trace import Trace
from gradrecipes.core.trace.variation import ALL_SCALED, FITTING_WEIGHTS, SCALED_INPUTS, SCALED_TARGETS, Variation
from gradrecipes.diagnosis.outcome.variation_facts import fixed_by, variation
from gradrecipes.diagnosis.rules.unscaled_inputs import far_inputs, is_pixels
from gradrecipes.diagnosis.rules.unscaled_targets import far_target

# A variation that changes one thing -> the codes of the causes that it removes, and their name in a sentence.
# `ALL_SCALED` changes all of those at once that were tried.
PARTS = {
    SCALED_INPUTS: (("unscaled_inputs",), "the inputs"),
    SCALED_TARGETS: (("unscaled_targets",), "the targets"),
    FITTING_WEIGHTS: (("exploding_initialization", "vanishing_initialization"), "the initial weights"),
}


def with_joint_remedy(findings: Sequence[Finding], trace: Trace) -> list[Finding]:
    """Return the findings; where only the changes together fix the run, each of their causes names them as one remedy.

    Args:
        findings: What the rules found, in any order.
        trace: The record they rest on, with the variations of its trial.
    """
    tried = [one for one in PARTS if variation(trace, one) is not None]
    if len(tried) < 2 or not fixed_by(trace, ALL_SCALED) or fixed_by(trace, *tried):
        return list(findings)
    by_code = {finding.code: finding for finding in findings}
    causes = {one: by_code[code] for one in tried for code in PARTS[one][0] if code in by_code}
    if len(causes) < 2:
        return list(findings)
    remedy = _remedy(causes, trace)
    together = {finding.code for finding in causes.values()}
    return [
        replace(finding, prescriptions=(remedy, *finding.prescriptions)) if finding.code in together else finding
        for finding in findings
    ]


def _remedy(causes: Mapping[Variation, Finding], trace: Trace) -> Prescription:
    changed = [PARTS[one][1] for one in causes]
    named = f"{', '.join(changed[:-1])} and {changed[-1]}"
    weights = causes.get(FITTING_WEIGHTS)
    code = ""
    if weights is not None and weights.prescriptions:
        code = weights.prescriptions[0].code.rstrip("\n") + "\n\n# Then, with the model that has these layers:\n"
    inputs = {one.name: is_pixels(one) for one in far_inputs(trace)} if SCALED_INPUTS in causes else {}
    target = far_target(trace) if SCALED_TARGETS in causes else None
    return Prescription(
        title=f"Scale {named} together" if weights is None else f"Bring {named} to unit size together",
        code=code + scaling_lines(inputs, None if target is None else target.name),
        reason=f"In the trial no single change was enough: the loss falls only with {named} changed together.",
        risk="Scale the validation data and later inputs with the same numbers. Losses are in scaled units.",
        reference="this trial; LeCun et al., Efficient BackProp, section 4.3",
    )


def scaling_lines(inputs: Mapping[str, bool], target: str | None) -> str:
    """Return lines that train on scaled arrays and give the predictions in the user's units.

    Args:
        inputs: For each array of inputs, by the name it has in the user's program (`x`, `x['image']`), whether it holds
            pixels from 0 to 255.
        target: Name of the array of targets, or None to leave them as they are.

    Example:
        >>> print(scaling_lines({"x": False}, "y"), end="")
        x_mean, x_std = x.mean(axis=0), x.std(axis=0) + 1e-7
        y_mean, y_std = y.mean(axis=0), y.std(axis=0) + 1e-7
        model.fit((x - x_mean) / x_std, (y - y_mean) / y_std)
        predictions = model.predict((x - x_mean) / x_std) * y_std + y_mean
    """
    lines, fed, learned, back = [], "x", "y", ""
    for name, pixels in inputs.items():
        short = _identifier(name)
        how = "127.5, 127.5" if pixels else f"{name}.mean(axis=0), {name}.std(axis=0) + 1e-7"
        lines.append(f"{short}_mean, {short}_std = {how}")
        if name == "x":
            fed = "(x - x_mean) / x_std"
        else:
            lines.append(f"{name} = ({name} - {short}_mean) / {short}_std")
    if target is not None:
        short = _identifier(target)
        lines.append(f"{short}_mean, {short}_std = {target}.mean(axis=0), {target}.std(axis=0) + 1e-7")
        if target == "y":
            learned, back = "(y - y_mean) / y_std", " * y_std + y_mean"
        else:
            lines.append(f"{target} = ({target} - {short}_mean) / {short}_std")
    lines += [f"model.fit({fed}, {learned})", f"predictions = model.predict({fed}){back}"]
    if target is not None and target != "y":
        part = target.replace("y", "predictions", 1)
        lines.append(f"{part} = {part} * {short}_std + {short}_mean")
    return "\n".join(lines) + "\n"


def _identifier(name: str) -> str:
    """Return a name for variables: `x_image` for `x['image']`."""
    return re.sub(r"\W+", "_", name).strip("_")
