"""Write the recipe cards and the rule pages from what the package says of itself, so that nothing is said twice.

MkDocs calls `on_config` and `on_files`; the tests call `generated_pages` and run what the pages show.
"""

from __future__ import annotations

from typing import Any

from gradrecipes import recipes
from gradrecipes.cli.recipes import measured_effects
from gradrecipes.diagnosis.registry import rule_page as read_rule_page
from gradrecipes.diagnosis.registry import rules
from gradrecipes.recipes import Recipe

RECIPES, RULES = "recipes/", "rules/"
STARTS = {
    RECIPES: "# The six recipes\n\nEach of the six best practices against exploding gradients is one function of"
    " `gr.recipes`. It returns a `Recipe`: what to set at compile, which callbacks, what to build with, a claim and"
    " its sources. Recipes are joined with `+`, and those that contradict each other are refused.\n\n"
    "| recipe | what it claims |\n|---|---|\n",
    RULES: "# What a diagnosis can find\n\n`gr.diagnose(model, x, y)` measures, and runs every rule"
    " below on what it measured; `gr.diagnose(trace)` runs them on the record of a training. A **cause** explains"
    " and comes first; a **symptom** is what one sees of it. A rule whose evidence is missing stays silent.\n\n"
    "| code | kind | meaning |\n|---|---|---|\n",
}


def on_config(config: Any) -> Any:
    """Add the generated pages to the navigation."""
    names = {RECIPES: [recipe.name for recipe in recipes.all()], RULES: list(rules())}
    for section in config.nav:
        for pages in section.values():
            for folder, found in names.items():
                if isinstance(pages, list) and pages == [f"{folder}index.md"]:
                    pages.extend({name: f"{folder}{name}.md"} for name in found)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def generated_pages() -> dict[str, str]:
    """Return path to Markdown for every page that no hand wrote."""
    cards = {f"{RECIPES}{recipe.name}.md": recipe_card(recipe) for recipe in recipes.all()}
    pages = {f"{RULES}{code}.md": rule_page(code) for code in rules()}
    rows = [f"| [{recipe.name}]({recipe.name}.md) | {recipe.claim} |" for recipe in recipes.all()]
    lines = [f"| [`{code}`]({code}.md) | {entry.kind.value} | {entry.title} |" for code, entry in rules().items()]
    indices = {RECIPES: rows, RULES: lines}
    return {f"{folder}index.md": STARTS[folder] + "\n".join(rows) + "\n" for folder, rows in indices.items()} | {
        **cards,
        **pages,
    }


def rule_page(code: str) -> str:
    """Return the page of a rule: the docstring of the module in which it stands."""
    return read_rule_page(code).markdown()


def recipe_card(recipe: Recipe) -> str:
    """Return the card of a recipe: claim, use, what it sets, what was measured, arguments, sources."""
    measured = measured_effects().get(recipe.name)
    effect = (
        "" if measured is None else f"## What was measured\n\n{measured['effect']}\n\nBy `{measured['script']}`.\n\n"
    )
    sources = "\n".join(f"- {reference}" for reference in recipe.references)
    return (
        f"# {recipe.name}\n\n{recipe.claim}\n\n## Use\n\n```python\n{recipe_snippet(recipe)}```\n\n"
        f"`x`, `y` and `x_val`, `y_val` are your data.\n\n"
        f"## What it sets\n\n```text\n{recipe}\n```\n\n{effect}"
        f"## Arguments\n\n::: gradrecipes.recipes.practices.{recipe.name}\n    options:\n"
        f"      heading_level: 3\n\n## Sources\n\n{sources}\n"
    )


def recipe_snippet(recipe: Recipe) -> str:
    """Return the lines that use every part that a recipe has, and no other."""
    layer = '128, activation="relu"' + (", **recipe.layer_arguments()" if recipe.layers else "")
    blocks = "".join(f"hidden = recipe.block({part!r})(hidden)\n" for part in recipe.blocks).replace("'", '"')
    model = "gr.RecipeModel(inputs, outputs, **recipe.model_arguments())" if recipe.model else ""
    optimizer = "**recipe.compile_arguments(), " if recipe.optimizer else 'optimizer="adam", '
    data = "" if "validation_split" in recipe.fit else "validation_data=(x_val, y_val), "
    fit = "**recipe.fit_arguments()" if recipe.fit or recipe.planned_callbacks else ""
    return (
        "import keras\n\nimport gradrecipes as gr\n\n"
        f"recipe = gr.recipes.{recipe.name}()\n"
        f"inputs = keras.Input((64,))\nhidden = keras.layers.Dense({layer})(inputs)\n{blocks}"
        f"outputs = keras.layers.Dense(10)(hidden)\nmodel = {model or 'keras.Model(inputs, outputs)'}\n"
        "loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)\n"
        f"model.compile({optimizer}loss=loss)\n"
        f"model.fit(x, y, {data}epochs=2, {fit}".rstrip(", ")
        + ")\n"
    )
