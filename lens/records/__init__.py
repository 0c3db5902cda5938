"""What was computed once and is shipped: records of runs, and the lenses and models that came out of them. Data only.

`tuned-lens-smollm2-135m`, made on a CPU with two cores by

    model, wikipedia = lens.load("smollm2-135m"), lens.corpus("wikipedia")
    moments = lens.collect_moments(model, wikipedia, tokens=20_000)
    start = lens.fit_shortcuts(moments.train, ridge=None, validation=moments.validation)
    lens.fit_tuned_lens(model, wikipedia, start=start).save("tuned-lens-smollm2-135m.safetensors", torch.bfloat16)

`prefix-decoder-smollm2-135m`, made on a CPU, one thread, in two minutes of processor time, by

    python -m lens.probes.prefix_decoder prefix-decoder-smollm2-135m.safetensors

`depth-smollm2-135m`, made on a CPU, one thread, in six minutes of processor time, by

    python -m lens.probes.depth_record depth-smollm2-135m.nc

`rotary-settings`: base, rotary width, context, layers and scaling of released models, each with its source; facts, not results.

`rope-minimum-bases`: what `lens.probes.rope_minimum.min_base` finds for its `WIDTHS` and `CONTEXTS`.

`rope-bases`, made on a CPU, one thread for each training, by

    python -m lens.training.rope_bases rope-bases.jsonl

Its wall times are those of busy cores, and those without rotation hold a pause of nine minutes; two minutes of processor
time are what a training takes.

`three-phase`, a family of small models, and `three-phase.nc`, the course of all its trainings, made on a CPU, one thread for each
training, by

    lens train three-phase --seed 0 1 2 -o runs
    lens train three-phase-12-blocks three-phase-12-blocks-no-theta-decay -o runs
    python -m lens.training.shipping three-phase runs/*
    python -m lens.probes.phase_family three-phase.nc runs/*

Wall times are those of busy cores, too. `docstrings` is the prose of installed libraries: with other releases of these it is
another text.

`relations`, pairs and sentences of our own, and `relation-…`, what was measured of them and the maps that edit, made on a CPU by

    python -m lens.probes.relation_record FOLDER

`runs`, a folder for each named run and kind of device, with a netCDF file for each piece; `lens.run_record` reads them, and each
says how it was made (device, versions, commit, seed, time, memory). Made from a clean checkout by

    for name in smollm2-moments three-phase rope-bases attention-spectra panels; do
        lens runs start $name --device cpu -o $name-cpu
    done

whose netCDF files are these; what a run keeps beside them, such as the models of `three-phase`, is not shipped. Each piece
has the load of the machine as it began. There is no GPU among them.
"""
