# prompts -> images -> embeddings -> scores -> manifests -> classifiers -> predictions -> metrics -> tables
#
#   snakemake --cores all results/table1.csv
#   snakemake --cores all results/figure1.csv    real shots too: shots -> guided images -> few_shot classifiers
#
# Paths carry the key of what made the artifact, computed from params.yaml when the graph is planned (rules/common.smk).


include: "workflow/rules/configuration.smk"


# A job of a cluster gets the configuration that its run was started with: see onstart in rules/run.smk.
if not HANDED_OVER:

    configfile: "params.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/run.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/embeddings.smk"
include: "workflow/rules/manifests.smk"
include: "workflow/rules/classifiers.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/few_shot.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/miniature.smk"


localrules:
    all,
    all_images,
    all_embeddings,


rule all:
    default_target: True
    input:
        [f"{RESULTS}/{name}.csv" for name in PLAN.tables],
