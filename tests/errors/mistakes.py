"""Mistakes: the command and the line that a person gets. `…` stands for any text; {names} are made by the test.

Each is answered in under 5 seconds (libraries already loaded), before anything compiles, without a traceback, with exit
status 2. `errors_test` runs them all.
"""

from typing import NamedTuple

# Two trainings that would run: depth on rendered scenes, and panoptic labels from finished arrays.
SCENES = "train --config={configs}/depth_stage1.py:scenes,runlocal,res=32,patch=8 --workdir={workdir} " \
         "--config.dataset=scenes/tiny --config.batch_size=8"
ARRAYS = "train --config={configs}/panoptic_stage1.py:scenes,runlocal,res=32,patch=8 --workdir={workdir} " \
         "--config.dataset=npz --config.data_dir={arrays} --config.val_split=None --config.evals=[] " \
         "--config.batch_size=8"
STAGE_2 = "train --config={configs}/depth_stage2.py:scenes,runlocal,res=32,patch=8 --workdir={workdir} " \
          "--config.dataset=scenes/tiny --config.batch_size=8 --config.oracle.model_init={tmp}/nowhere"
FOLDER = "train --config={configs}/depth_stage1.py:scenes,runlocal,res=32,patch=8 --workdir={workdir} " \
         "--config.dataset=folder --config.batch_size=8 --config.val_split=None --config.evals=[] " \
         "--config.pp_train=decode|resize(32)|resize(32,key='labels',method='nearest')|value_range(-1,1)" \
         "|keep('image','labels')"
CHECK = "make_data check --dataset=folder"


class Mistake(NamedTuple):
  """What is wrong in a word, the command, the line."""
  what: str
  command: str
  line: str


MISTAKES = [
    # --- flags and files ---
    Mistake("no --config", "train --workdir={workdir}",
            "train: --config is missing: --config=configs/uvim/depth_stage1.py:scenes,runlocal"),
    Mistake("--config without value", "train --workdir={workdir} --config",
            "train: --config needs a value: --config=…"),
    Mistake("no --workdir", "train --config={configs}/depth_stage1.py",
            "train: the following arguments are required: --workdir"),
    Mistake("unknown flag", SCENES + " --evalonly", "train: unknown flag '--evalonly'; did you mean '--eval_only'?"),
    Mistake("a word too many", SCENES + " resume",
            "train: 'resume' belongs to no flag; flags are written --name=value"),
    Mistake("no such config file", "train --config={configs}/depth_stag1.py --workdir={workdir}",
            "train: --config: no file '{configs}/depth_stag1.py'; did you mean '{configs}/depth_stage1.py'?"),
    Mistake("a folder as config file", "train --config={configs} --workdir={workdir}",
            "train: --config: no file '{configs}'; …"),
    Mistake("no Python as config file", "train --config={tmp}/notes.txt --workdir={workdir}",
            "train: --config: '{tmp}/notes.txt' is no Python file"),
    Mistake("syntax error in a config file", "train --config={tmp}/comma.py --workdir={workdir}",
            "train: {tmp}/comma.py:4: '(' was never closed: …"),
    Mistake("wrong name in a config file", "train --config={tmp}/name.py --workdir={workdir}",
            "train: {tmp}/name.py:4: NameError: name 'ml_colections' is not defined"),
    Mistake("missing import in a config file", "train --config={tmp}/import.py --workdir={workdir}",
            "train: {tmp}/import.py:1: ModuleNotFoundError: No module named 'ml_colections'"),
    Mistake("config file without get_config", "train --config={tmp}/empty.py --workdir={workdir}",
            "train: {tmp}/empty.py: defines no function 'get_config'"),
    Mistake("get_config returns a dict", "train --config={tmp}/dict.py --workdir={workdir}",
            "train: {tmp}/dict.py: get_config must return an ml_collections.ConfigDict, not dict"),
    Mistake("config argument misspelt", "train --config={configs}/depth_stage1.py:scene --workdir={workdir}",
            "train: config: unknown argument 'scene'; did you mean 'scenes'?"),
    Mistake("config argument of another type", "train --config={configs}/depth_stage1.py:res=big --workdir={workdir}",
            "train: config: argument 'res' wants a int, not 'big'"),
    Mistake("config argument without value", "train --config={configs}/depth_stage1.py:res --workdir={workdir}",
            "train: config: argument 'res' needs a value: res=512"),
    Mistake("workdir is a file", "train --config={configs}/depth_stage1.py:scenes,runlocal --workdir={tmp}/notes.txt",
            "train: --workdir: …notes.txt … a file; …"),
    Mistake("nothing to evaluate", SCENES + " --eval_only", "train: --eval_only: no checkpoint in {workdir}"),
    # --- keys ---
    Mistake("key misspelt", SCENES + " --config.batch_sise=4",
            "train: config: unknown key 'batch_sise'; did you mean 'batch_size'?"),
    Mistake("nested key misspelt", SCENES + " --config.schedule.warmup_stps=4",
            "train: config.schedule: unknown key 'warmup_stps'; did you mean 'warmup_steps'?"),
    Mistake("model field misspelt", SCENES + " --config.model.widht=32",
            "train: config.model: unknown key 'widht'; did you mean 'width'?"),
    Mistake("override without value", SCENES + " --config.lr", "train: --config.lr needs a value: --config.lr=…"),
    Mistake("override of another type", SCENES + " --config.batch_size=many",
            "train: config.batch_size: wants a value of type int like …, not 'many'"),
    Mistake("override of a value as a block", SCENES + " --config.lr.x=1",
            "train: config.lr: … is no block, 'lr.x' cannot be set"),
    Mistake("batch of nothing", SCENES + " --config.batch_size=0",
            "train: config.batch_size: must be an integer above 0, not 0"),
    Mistake("both lengths", SCENES + " --config.num_epochs=3",
            "train: config: num_epochs (3) and total_steps (900) are both set; set one of them to None"),
    Mistake("unknown task", SCENES + " --config.task=depht",
            "train: config.task: unknown name 'depht'; did you mean 'depth'?"),
    Mistake("unknown system", SCENES + " --config.model_name=proj.uvim.vitt",
            "train: config.model_name: unknown name 'proj.uvim.vitt'; did you mean 'uvim.vit'?"),
    Mistake("unknown evaluator", SCENES + " --config.evals=[('depth_val','nyu_depht')]",
            "train: config.evals ('depth_val'): unknown name 'nyu_depht'; did you mean 'nyu_depth'?"),
    Mistake("evaluator without block", SCENES + " --config.evals=[('depth_test','nyu_depth')]",
            "train: config.evals: 'depth_test' has no block; set config.depth_test = dict(split=…, pp=…)"),
    Mistake("unknown prediction", SCENES + " --config.depth_val.pred=predct",
            "train: config.depth_val.pred: unknown prediction 'predct'; did you mean 'predict'?"),
    Mistake("unknown option of a prediction", SCENES + " --config.depth_val.pred_kw={'tsk_options':{}}",
            "train: config.depth_val.pred_kw: unknown option 'tsk_options'; did you mean 'task_options'?"),
    Mistake("unknown option of a task", SCENES + " --config.depth_val.pred_kw={'task_options':{'estimte':'mean'}}",
            "train: config.depth_val.pred_kw.task_options: unknown option 'estimte'; did you mean 'estimate'?"),
    Mistake("unknown option of an evaluator", SCENES + " --config.depth_val.metric={'avrage':'pixel'}",
            "train: config.depth_val.metric: unknown option 'avrage'; did you mean 'average'?"),
    Mistake("evaluator without what it needs", SCENES + " --config.evals=[('depth_val','save_predictions')]"
            " --config.depth_val.metric={}", "train: config.depth_val.metric: option 'out_dir' is missing"),
    Mistake("evaluator of classes that nobody knows", SCENES + " --config.evals=[('depth_val','mean_iou')]"
            " --config.depth_val.metric={'dataset':'coco_jsn'}",
            "train: config.depth_val: metric.dataset: unknown dataset 'coco_jsn'; did you mean 'coco_json'?"),
    Mistake("batch of an evaluator and devices", SCENES + " --config.depth_val.batch_size=1",
            "train: config.depth_val.batch_size: 1 does not divide among 8 devices; nearest that does: 8"),
    Mistake("unknown compute type", SCENES + " --config.dtype=float16",
            "train: config.dtype: unknown value 'float16'; did you mean 'bfloat16'?"),
    Mistake("unknown policy", SCENES + " --config.on_bad_example=ignore",
            "train: config.on_bad_example: unknown value 'ignore'; valid: error, skip"),
    Mistake("unknown optimizer", SCENES + " --config.optax_name=scale_by_adm",
            "train: config: unknown optax_name 'scale_by_adm'; did you mean 'scale_by_adam'?"),
    Mistake("unknown decay", SCENES + " --config.schedule.decay_type=cosin",
            "train: config.schedule…'cosin'; did you mean 'cosine'?"),
    # --- sizes ---
    Mistake("image no multiple of the patch", SCENES + " --config.model.input_size=(33,32)",
            "train: config.model.input_size: height 33 is no multiple of the patch's 8; nearest: 32"),
    Mistake("width no multiple of the heads", SCENES + " --config.model.num_heads=3",
            "train: config.model.width: 128 is no multiple of num_heads 3; nearest: 129"),
    Mistake("labels and model disagree", SCENES + " --config.model.patch_size=(4,4)",
            "train: config.model.inputs: 'depth' has 64 pixels in a patch, patch_size (4, 4) has 16"),
    Mistake("dictionary and vocabulary", STAGE_2 + " --config.model.vocab_size=64",
            "train: config.model.vocab_size: 64, but the oracle's dictionary of 64 words and the start token need 65"),
    Mistake("batch and devices", SCENES + " --config.batch_size=12",
            "train: config.batch_size: 12 does not divide among 8 devices; nearest that does: 8 or 16"),
    Mistake("mesh and devices", SCENES + " --config.mesh=[('data',3)]",
            "train: config.mesh: {'data': 3} needs 3 devices, but there are 8; valid sizes of an axis: [1, 2, 4, 8], "
            "or -1 …"),
    Mistake("mesh without a batch axis", SCENES + " --config.mesh=[('model',8)]",
            "train: config.mesh: no axis of ['model'] carries the batch; name one of ['data', 'fsdp']"),
    Mistake("sharding over no axis", SCENES + " --config.sharding=[('.*','fdsp')]",
            "train: config.sharding ('.*'): unknown placement 'fdsp'; valid: data, replicate"),
    Mistake("sharding rule for nothing", SCENES + " --config.sharding=[('encodr.*','replicate'),('.*','replicate')]",
            "train: config.sharding: pattern 'encodr.*' matches no leaf; did you mean '…'?"),
    Mistake("multiplier for nothing", SCENES + " --config.lr_mults=[('encodr.*',0.1),('.*',1.0)]",
            "train: config.lr_mults: pattern 'encodr.*' matches no parameter; did you mean 'encoder…'?"),
    Mistake("no regular expression", SCENES + " --config.lr_mults=[('encoder[',0.1),('.*',1.0)]",
            "train: config.lr_mults: 'encoder[' is no regular expression …"),
    # --- data ---
    Mistake("unknown dataset", SCENES + " --config.dataset=scnes",
            "train: unknown dataset 'scnes'; did you mean 'scenes'?"),
    Mistake("unknown split", SCENES + " --config.train_split=trian",
            "train: scenes/tiny: unknown split 'trian'; did you mean 'train'?"),
    Mistake("split arithmetic", SCENES + " --config.train_split=train[10:5:2]",
            "train: scenes/tiny: bad split 'train[10:5:2]': …"),
    Mistake("slice beyond the split", SCENES + " --config.train_split=train[5000:]",
            "train: scenes/tiny: … split 'train[5000:]'…"),
    Mistake("dataset that is not prepared", SCENES + " --config.dataset=nyu_depth_v2 --config.data_dir={tmp}",
            "train: dataset 'nyu_depth_v2' is not prepared in data_dir '{tmp}'; prepare it with: python -c …"),
    Mistake("folder without images", FOLDER + " --config.data_dir={arrays}",
            "train: folder '{arrays}': there is neither images/ nor <split>/images/ in it"),
    Mistake("mask without image", FOLDER + " --config.data_dir={spare_mask}",
            "train: {spare_mask}/labels: 1 files without an image (d); files are paired by name without suffix"),
    Mistake("arrays that are missing", ARRAYS + " --config.data_dir={tmp}/nowhere",
            "train: no .npz files in {tmp}/nowhere"),
    Mistake("split of arrays", ARRAYS + " --config.train_split=trian",
            "train: {arrays}: unknown split 'trian'; did you mean 'train'?"),
    Mistake("pickled arrays", ARRAYS + " --config.train_split=pickled",
            "train: {arrays}/pickled.npz: not a readable .npz of plain arrays (Object arrays cannot be loaded …)"),
    Mistake("no archive", ARRAYS + " --config.train_split=text",
            "train: {arrays}/text.npz: not a readable .npz of plain arrays …"),
    Mistake("label out of range", ARRAYS + " --config.train_split=high",
            "train: npz high: example 5: label 11 in channel 0, but the model has 11 classes there, 0 to 10 "
            "(config.model.inputs); nearest valid: 10"),
    Mistake("labels of one channel", ARRAYS + " --config.train_split=single",
            "train: npz single: 'labels' have 1 channels, the model's have 2"),
    # --- preprocessing ---
    Mistake("unknown op", SCENES + " --config.pp_train=decode|resise(32)|keep('image')",
            "train: preprocessing: unknown op 'resise'; did you mean 'resize'?\n  decode|resise(32)|keep('image')\n  "
            "       ^"),
    Mistake("unknown argument of an op", SCENES + " --config.pp_train=decode|resize(sise=32)",
            "train: preprocessing: resize has no argument 'sise'; did you mean 'size'?\n  decode|resize(sise=32)\n   "
            "      ^"),
    Mistake("key that is not there", SCENES + " --config.pp_train=decode|keep('imge')",
            "train: preprocessing: keep reads 'imge', which is not there; did you mean 'image'?\n  "
            "decode|keep('imge')\n         ^"),
    Mistake("code in a string", SCENES + " --config.pp_train=decode|resize(open('x').read())",
            "train: preprocessing: open('x').read() is not a literal …"),
    Mistake("module of ops", SCENES + " --config.pp_modules=['ops_genral']",
            "train: pp_modules: unknown module of ops 'ops_genral'; did you mean 'ops_general'?"),
    Mistake("no labels put out", SCENES + " --config.pp_train=decode|resize(32)|value_range(-1,1)|keep('image')",
            "train: config.pp_train: the batch has no 'labels', which the model reads; it has image; is it missing "
            "in keep(…)?"),
    Mistake("image of another size than the model's", SCENES + " --config.pp_train=decode|nyu_depth|resize(24)"
            "|resize(24,key='labels',method='nearest')|value_range(-1,1)|keep('image','labels')", "train: "
            "config.pp_train makes what the model does not take: 'image' is (24, 24, 3), 'labels' is (24, 24, 1); "
            "config.model.input_size is (32, 32) …"),
    Mistake("text in a batch",
            SCENES + " --config.pp_train=decode|nyu_depth|resize(32)|keep('image','labels','image/filename')",
            "train: preprocessing: 'image/filename' is text, which no batch can hold; …"),
    Mistake("no fixed size",
            SCENES + " --config.pp_train=decode|nyu_depth|inception_box|crop_box(key='image')|keep('image','labels')",
            "train: preprocessing: 'image' has no fixed shape (None, None, 3), which no batch can hold; …"),
    # --- weights ---
    Mistake("oracle's weights are missing", STAGE_2,
            "train: config.oracle.model_init: no weights file or workdir {tmp}/nowhere; …"),
    Mistake("oracle's weights are no archive", STAGE_2 + " --config.oracle.model_init={arrays}/text.npz",
            "train: config.oracle.model_init: {arrays}/text.npz: not a readable .npz of plain arrays …"),
    Mistake("oracle's weights are pickled", STAGE_2 + " --config.oracle.model_init={arrays}/pickled.npz",
            "train: config.oracle.model_init: {arrays}/pickled.npz: not a readable .npz of plain arrays …"),
    Mistake("weights of another model", SCENES + " --config.model_init={arrays}/other.npz",
            "train: config.model_init: does not fit the model: 0 taken, …"),
    # --- several processes ---
    Mistake("processes without coordinator", SCENES + " --num_processes=2 --process_id=0",
            "train: --coordinator is missing (or $JAX_COORDINATOR_ADDRESS): …"),
    Mistake("coordinator without port", SCENES + " --coordinator=host --num_processes=2 --process_id=0",
            "train: --coordinator: 'host' is not host:port, e.g. 10.0.0.1:12355"),
    Mistake("process beyond the number", SCENES + " --coordinator=127.0.0.1:12355 --num_processes=2 --process_id=2",
            "train: --process_id: 2 with --num_processes=2; valid: 0 to 1"),
    # --- tools ---
    Mistake("format of make_data", "make_data scenes --out={tmp}/made --format=folders",
            "make_data: --format: unknown value 'folders'; did you mean 'folder'?"),
    Mistake("command of make_data", "make_data scene --out={tmp}/made",
            "make_data: unknown command 'scene'; did you mean 'scenes'?"),
    Mistake("check without data", CHECK, "make_data check: --data_dir is missing: the folder of dataset 'folder'"),
    Mistake("check of an empty folder", CHECK + " --data_dir={arrays}",
            "make_data check: --data_dir: there is no images/ or <split>/images/ in '{arrays}'"),
    Mistake("format of import_weights",
            "import_weights --from=bigvision --src=x --out=o.npz --config={configs}/depth_stage1.py",
            "import_weights: --from: unknown value 'bigvision'; did you mean 'big_vision'?"),
    Mistake("source of import_weights", "import_weights --from=big_vision --src={tmp}/none.npz --out={tmp}/o.npz "
            "--config={configs}/depth_stage1.py", "import_weights: --src: no weights file or workdir {tmp}/none.npz; "
            "…"),
    Mistake("workdir of export", "export --workdir={tmp}/nowhere --out={tmp}/o.npz", "export: …{tmp}/nowhere…"),
    Mistake("file name of export", "export --workdir={tmp} --out={tmp}/o.npy",
            "export: --out: '{tmp}/o.npy' is no .npz file name; did you mean '{tmp}/o.npy.npz'?"),
    Mistake("workdir of report", "report --workdir={tmp}/nowhere --out={tmp}/o.html", "report: …{tmp}/nowhere…"),
]
