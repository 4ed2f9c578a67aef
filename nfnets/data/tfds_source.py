def open_tfds(name, *, data_dir, train_split, eval_split, with_train=True):
    raise NotImplementedError
