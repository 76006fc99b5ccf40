# The Python 2.7 that setup.sh unpacked, as the command `"${python[@]}"`. Source it, with $home set.
libraries=$(echo "$home"/root/usr/lib/*-linux-gnu)
python=(env "LD_LIBRARY_PATH=$libraries" "PYTHONHOME=$home/root/usr" "PYTHONPATH=$home/site27"
  PYTHONDONTWRITEBYTECODE=1 "$home/root/usr/bin/python2.7")
