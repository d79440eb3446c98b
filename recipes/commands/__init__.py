"""What each command of `theodolite` takes and does; every module is light until one of its commands is called."""
