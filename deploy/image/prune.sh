#!/bin/sh
# Takes out of an image's virtual environment what no job uses: prune.sh DIR. An eighth of the CPU
# image. The smoke test runs both jobs on what is left.
set -eu
rm -f "$1/.lock" # the installer's, which anybody could write to
cd "$1/lib/python3.11/site-packages"
# Tests and C headers.
find . -depth -type d \( -name tests -o -name include \) -exec rm -r {} +
# Arrow's own network clients: S3 is boto3's here.
rm pyarrow/libarrow_flight.so.* pyarrow/_flight.*.so pyarrow/libarrow_python_flight.so* \
  pyarrow/libarrow_s3.so.* pyarrow/_s3fs.*.so
# AWS services other than S3 and those that give out its credentials.
find botocore/data -mindepth 1 -maxdepth 1 -type d \
  ! -name s3 ! -name sts ! -name 'sso*' ! -name signin -exec rm -r {} +
