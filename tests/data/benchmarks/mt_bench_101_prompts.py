"""Prompts made for tests, in the form of the published ones; their words are not."""

import nothing_that_exists  # noqa: F401

skip_first_tasks = ["CM"]

need_ref_tasks = ["GR"]

judge = "Rate the last answer. "

score_format = " End with Rating: [[n]]."

eval_CM = "Does it remember?"

eval_GR = "Does it follow?"

unique_prompt = {"CM": eval_CM, "GR": eval_GR}


def eval_prompt_construct(task, ref_answer, history):
    system_prompt = judge + unique_prompt[task] + score_format
    prompt_template = "*** {history} {prediction} ***".format(
        history=history, prediction="{prediction}"
    )
    if task in need_ref_tasks:
        prompt_template += f" ### {ref_answer} ###"
    return system_prompt, prompt_template


raise SystemExit("nothing but constants and the function above may run")
